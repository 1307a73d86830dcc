//! How istiod is reached: gRPC over TLS, with the node's token.
//!
//! Nothing read from a file is kept: the roots are read for each connection, the token for each stream or call. Both
//! are rotated in place (Kubernetes replaces them by renaming a directory), and whoever comes next sees the new ones.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::{InvalidDnsNameError, ServerName};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::codegen::http::Uri;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use zeroize::Zeroizing;

use crate::{pem, provider};

/// Where istiod is, and what is shown to each other.
#[derive(Clone, Debug)]
pub struct Istiod {
    /// Its host and port, for example `istiod.istio-system.svc:15012`.
    pub address: String,
    /// How the connection is secured.
    pub security: IstiodSecurity,
    /// The file with the token that says who we are; `None` to say nothing.
    pub token: Option<PathBuf>,
    /// How long a connection may take to be made, handshake included.
    pub connect_timeout: Duration,
    /// How often a connection is asked whether its other end is still there.
    pub ping_interval: Duration,
    /// How long the answer may take before the connection counts as broken.
    pub ping_timeout: Duration,
}

/// How the connection to istiod is secured.
#[derive(Clone, Debug)]
pub enum IstiodSecurity {
    /// Not at all. For tests: with port 15010 anyone on the way may say what the mesh is.
    Plaintext,
    /// By TLS 1.3.
    Tls {
        /// The file with the roots that may vouch for istiod, as PEM.
        roots: PathBuf,
        /// The name that istiod's certificate must have, if it is not the host of the address.
        server_name: Option<String>,
    },
}

/// Why istiod can't be reached. Displayed with everything below it.
#[derive(Debug, Error)]
pub enum IstiodError {
    /// The address is none.
    #[error("`{address}` is not the address of an istiod: {why}; expected HOST:PORT")]
    Address {
        /// What was given.
        address: String,
        /// What is wrong with it.
        why: String,
    },
    /// The roots can't be used.
    #[error("the roots for istiod in {path}: {why}", path = path.display())]
    Roots {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The token can't be used.
    #[error("the token for istiod in {path}: {why}", path = path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The certificate's name can't be checked.
    #[error("`{name}` can't be the name of istiod's certificate: {source}")]
    ServerName {
        /// The name.
        name: String,
        /// Why not.
        source: InvalidDnsNameError,
    },
    /// No connection.
    #[error("no connection to istiod at {address}: {why}")]
    Connect {
        /// Where it should be.
        address: String,
        /// What went wrong, innermost last.
        why: String,
    },
}

/// Windows of a stream and of a connection, in bytes: the first answer of a large mesh is tens of megabytes, and
/// HTTP/2's default of 64 KiB would make it wait for a round trip each.
const STREAM_WINDOW: u32 = 2 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;

impl Istiod {
    /// istiod at `address`, with the time limits that suit a cluster.
    pub fn new(address: impl Into<String>, security: IstiodSecurity, token: Option<PathBuf>) -> Self {
        Self {
            address: address.into(),
            security,
            token,
            connect_timeout: Duration::from_secs(5),
            ping_interval: Duration::from_secs(10),
            ping_timeout: Duration::from_secs(10),
        }
    }

    /// Makes a connection. The roots are read for it, and again for each that replaces it.
    pub async fn connect(&self) -> Result<Channel, IstiodError> {
        let scheme = match self.security {
            IstiodSecurity::Plaintext => "http",
            IstiodSecurity::Tls { .. } => "https",
        };
        let uri: Uri = format!("{scheme}://{}", self.address)
            .parse()
            .map_err(|error| self.not_an_address(error))?;
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        if host.is_empty() || uri.port().is_none() {
            return Err(self.not_an_address("no host or no port"));
        }
        let tls = match &self.security {
            IstiodSecurity::Plaintext => None,
            IstiodSecurity::Tls { roots, server_name } => {
                let name = server_name.as_deref().unwrap_or(&host);
                Some((roots.clone(), name_of(name)?))
            }
        };
        let address = self.address.clone();
        // Also called by the channel itself, when it has lost its connection.
        let connector = tower::service_fn(move |_: Uri| {
            let (address, tls) = (address.clone(), tls.clone());
            async move { open(&address, tls).await }
        });
        Endpoint::from(uri)
            .connect_timeout(self.connect_timeout)
            .http2_keep_alive_interval(self.ping_interval)
            .keep_alive_timeout(self.ping_timeout)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .connect_with_connector(connector)
            .await
            .map_err(|error| IstiodError::Connect {
                address: self.address.clone(),
                why: with_causes(&error),
            })
    }

    /// The value of the `authorization` header, with the token as it is now.
    pub async fn authorization(&self) -> Result<Option<MetadataValue<Ascii>>, IstiodError> {
        let Some(path) = &self.token else { return Ok(None) };
        let unusable = |why: String| IstiodError::Token {
            path: path.clone(),
            why,
        };
        let token = tokio::fs::read(path)
            .await
            .map_err(|error| unusable(error.to_string()))?;
        let token = Zeroizing::new(token);
        let text = std::str::from_utf8(&token).map_or("", str::trim);
        if text.is_empty() {
            return Err(unusable("it is empty, or no text".into()));
        }
        let header = Zeroizing::new(format!("Bearer {text}"));
        let mut value: MetadataValue<Ascii> = header
            .parse()
            .map_err(|_| unusable("it can't be sent in a header".into()))?;
        value.set_sensitive(true);
        Ok(Some(value))
    }

    fn not_an_address(&self, why: impl ToString) -> IstiodError {
        IstiodError::Address {
            address: self.address.clone(),
            why: why.to_string(),
        }
    }
}

/// A connection of either kind.
trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

async fn open(address: &str, tls: Option<(PathBuf, ServerName<'static>)>) -> io::Result<TokioIo<Box<dyn Connection>>> {
    let tcp = TcpStream::connect(address).await?;
    tcp.set_nodelay(true)?;
    let connection: Box<dyn Connection> = match tls {
        None => Box::new(tcp),
        Some((roots, name)) => {
            let connector = tls_connector(&roots).await.map_err(io::Error::other)?;
            Box::new(connector.connect(name, tcp).await?)
        }
    };
    Ok(TokioIo::new(connection))
}

async fn tls_connector(roots: &Path) -> Result<TlsConnector, IstiodError> {
    let unusable = |why: String| IstiodError::Roots {
        path: roots.to_owned(),
        why,
    };
    let pem = tokio::fs::read(roots)
        .await
        .map_err(|error| unusable(error.to_string()))?;
    let store = pem::roots(&pem).map_err(unusable)?;
    let mut config = ClientConfig::builder_with_provider(provider::shared())
        .with_protocol_versions(provider::VERSIONS)
        .map_err(|error| unusable(error.to_string()))?
        .with_root_certificates(store)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

fn name_of(name: &str) -> Result<ServerName<'static>, IstiodError> {
    ServerName::try_from(name.to_owned()).map_err(|source| IstiodError::ServerName {
        name: name.to_owned(),
        source,
    })
}

/// An error and what caused it, in one line: tonic's own text is `transport error`.
fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let inner = error.to_string();
        if !text.ends_with(&inner) {
            text = format!("{text}: {inner}");
        }
        cause = error.source();
    }
    text
}
