//! A request of the proxy's own, by a client's: sent once, to a cluster as any other, and its answer read whole.
//!
//! It is the proxy that asks: what policy has to say of the client and the endpoint is not asked. Where it comes to nothing the cluster is told, as of
//! others, so that balancing, outliers and limits hold.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http::response::Parts;
use http_body_util::BodyExt;
use underpass_config::http::{Outcome, Wish};

use super::attempt::{Answer, Failure, attempt, in_time};
use super::failed::failed;
use super::forward::{Current, Job};

/// What was answered.
#[derive(Debug)]
pub struct Told {
    /// The head.
    pub head: Parts,
    /// All of the body.
    pub body: Bytes,
    /// What came behind it.
    pub trailers: HeaderMap,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Untold {
    /// There is no endpoint that is well.
    #[error("its cluster has no healthy endpoint")]
    NoEndpoint,
    /// The endpoint is the proxy itself.
    #[error("DNS has the proxy's own address {0} for it")]
    Loop(SocketAddr),
    /// It took too long.
    #[error("it has not answered in time")]
    TimedOut,
    /// It is longer than is read.
    #[error("its answer is longer than {0} bytes")]
    TooLong(usize),
    /// The question can't be written.
    #[error("it can't be asked about such a request")]
    Unwritable,
    /// It was not answered; as the log has it of others.
    #[error("{0}")]
    Unanswered(String),
    /// The answer broke off.
    #[error("its answer broke off")]
    BrokenOff,
}

impl From<Failure> for Untold {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Unwritable => Self::Unwritable,
            other => Self::Unanswered(failed(&other, false, true).details),
        }
    }
}

impl Job<'_> {
    /// Sends it once, and reads an answer of up to `most` bytes, within `patience`.
    ///
    /// # Errors
    /// When there is none.
    pub async fn inquire(&self, patience: Option<Duration>, most: usize) -> Result<Told, Untold> {
        let going = self.going().await.map_err(|_| Untold::NoEndpoint)?;
        let wish = Wish {
            at: going.at(&[]),
            labels: Some(self.labels).filter(|labels| !labels.is_empty()),
            ..Wish::default()
        };
        let endpoint = self.cluster.choose(&wish, || fastrand::u32(..));
        let endpoint = endpoint.ok_or(Untold::NoEndpoint)?;
        let address = endpoint.settings.address;
        self.refuse_the_proxys_own(address).map_err(|_| Untold::Loop(address))?;
        let _load = endpoint.hold();
        let current = Current::default();
        current.began(&endpoint, 0);
        let inquiry = async {
            let outcome = attempt(self.wanted(&endpoint), self.intake, self.upload).await;
            if let Some(outcome) = self.told(&outcome) {
                self.note(&current, outcome);
            }
            let answer = outcome?;
            let stream_until = answer.stream_until;
            in_time(stream_until, read(answer, most)).await?
        };
        let Some(patience) = patience else {
            return inquiry.await;
        };
        let in_time = tokio::time::timeout(patience, inquiry).await;
        in_time.unwrap_or_else(|_| {
            self.note(&current, Outcome::TimedOut);
            Err(Untold::TimedOut)
        })
    }
}

async fn read(answer: Answer, most: usize) -> Result<Told, Untold> {
    let lease = answer.lease;
    let (head, mut body) = answer.response.into_parts();
    let (mut bytes, mut trailers) = (BytesMut::new(), HeaderMap::new());
    while let Some(frame) = body.frame().await {
        let frame = match frame {
            Ok(frame) => frame,
            Err(why) => {
                lease.broke(why);
                return Err(Untold::BrokenOff);
            }
        };
        match frame.into_data() {
            Ok(data) if bytes.len() + data.len() > most => return Err(Untold::TooLong(most)),
            Ok(data) => bytes.extend_from_slice(&data),
            Err(other) => trailers = other.into_trailers().unwrap_or_default(),
        }
    }
    lease.give_back();
    Ok(Told {
        head,
        body: bytes.freeze(),
        trailers,
    })
}
