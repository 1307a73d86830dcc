//! What came of an attempt.

use std::io;
use std::net::{SocketAddr, TcpStream};

use serde_json::{Value, json};
use underpass_tests::Server;

/// What one way of connecting came to.
pub(crate) enum Outcome {
    /// A server answered, and this is what the two ends were called.
    Echoed {
        local: SocketAddr,
        peer: SocketAddr,
        server: SocketAddr,
    },
    /// Nobody did.
    Refused(String),
    /// This kernel has no such thing.
    Unsupported(String),
}

impl Outcome {
    /// Talks to whoever is at the other end of a connected stream.
    pub(crate) fn of(connected: io::Result<TcpStream>) -> Self {
        let talk = |mut stream: TcpStream| -> io::Result<Self> {
            let server = Server::greeting(&mut stream)?;
            Server::echo(&mut stream, b"attack")?;
            Ok(Self::Echoed {
                local: stream.local_addr()?,
                peer: stream.peer_addr()?,
                server,
            })
        };
        connected
            .and_then(talk)
            .unwrap_or_else(|error| Self::Refused(error.to_string()))
    }

    pub(crate) fn to_json(&self) -> Value {
        match self {
            Self::Echoed { local, peer, server } => {
                json!({"echoed": {"local": local.to_string(), "peer": peer.to_string(), "server": server.to_string()}})
            }
            Self::Refused(why) => json!({"refused": why}),
            Self::Unsupported(why) => json!({"unsupported": why}),
        }
    }
}
