//! A body of which the beginning was read before it is known where it goes: what was read comes first, then the rest.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, SizeHint};

use super::arriving::{Arriving, BrokenOff};

/// One, of which the beginning is kept.
#[derive(Debug)]
pub struct Kept {
    /// Nothing once it is sent on.
    beginning: Bytes,
    /// If it has come to its end.
    trailers: Option<HeaderMap>,
    rest: Box<Arriving>,
    has_length: bool,
}

/// Why the beginning of a body is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotKept {
    /// It is longer than may be kept.
    TooLong,
    /// Its sender has sent nothing for too long.
    Idle,
    /// It broke off.
    Broken,
}

impl Kept {
    /// These bytes.
    pub fn whole(bytes: Bytes) -> Self {
        Self {
            beginning: bytes,
            trailers: None,
            rest: Box::new(Arriving::Nothing),
            has_length: true,
        }
    }

    /// Reads `most` bytes of a body, or all if it is shorter; a few more are kept, if they came together. Of one that `has_to_end` all is to come
    /// within that many. Its sender may be idle for `patience`.
    ///
    /// # Errors
    /// When that is not to be had.
    pub async fn of(
        mut body: Arriving,
        most: usize,
        has_to_end: bool,
        patience: Option<Duration>,
    ) -> Result<(Self, Bytes), NotKept> {
        let has_length = body.size_hint().exact().is_some();
        let mut beginning = BytesMut::new();
        let (mut trailers, mut has_ended) = (None, false);
        while !has_ended && (has_to_end || beginning.len() < most) {
            let next = body.frame();
            let frame = match patience {
                Some(patience) => tokio::time::timeout(patience, next).await.map_err(|_| NotKept::Idle)?,
                None => next.await,
            };
            match frame.transpose().map_err(|_| NotKept::Broken)?.map(Frame::into_data) {
                Some(Ok(data)) => beginning.extend_from_slice(&data),
                Some(Err(other)) => {
                    trailers = other.into_trailers().ok();
                    has_ended = true;
                }
                None => has_ended = true,
            }
            if has_to_end && beginning.len() > most {
                return Err(NotKept::TooLong);
            }
            has_ended |= body.is_end_stream();
        }
        let beginning = beginning.freeze();
        let kept = Self {
            beginning: beginning.clone(),
            trailers,
            rest: Box::new(if has_ended { Arriving::Nothing } else { body }),
            has_length,
        };
        Ok((kept, beginning))
    }

    /// What has come of it, if it came whole and without trailers, whose end not everybody sees where we do.
    pub fn length_of_all(&self) -> Option<u64> {
        let is_all = matches!(*self.rest, Arriving::Nothing) && self.trailers.is_none();
        is_all.then_some(self.beginning.len() as u64)
    }

    /// As a body.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        if !self.beginning.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.beginning)))));
        }
        if let Some(trailers) = self.trailers.take() {
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        Pin::new(&mut *self.rest).poll_frame(cx)
    }

    /// As a body.
    pub fn is_end_stream(&self) -> bool {
        self.beginning.is_empty() && self.trailers.is_none() && self.rest.is_end_stream()
    }

    /// As a body: it is framed as it came.
    pub fn size_hint(&self) -> SizeHint {
        match self.rest.size_hint().exact() {
            Some(rest) if self.has_length => SizeHint::with_exact(rest + self.beginning.len() as u64),
            _ => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(beginning: &'static str, trailers: Option<HeaderMap>) -> Arriving {
        let mut kept = Kept::whole(Bytes::from_static(beginning.as_bytes()));
        kept.trailers = trailers;
        Arriving::Kept(kept)
    }

    #[tokio::test]
    async fn what_was_read_comes_first_and_trailers_last() {
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", http::HeaderValue::from_static("1"));
        let (kept, beginning) = Kept::of(body("hello", Some(trailers.clone())), 100, true, None)
            .await
            .unwrap();
        assert_eq!((&beginning[..], kept.length_of_all()), (&b"hello"[..], None));
        let mut again = Arriving::Kept(kept);
        assert!(!again.is_end_stream());
        assert_eq!(again.frame().await.unwrap().unwrap().into_data().unwrap(), "hello");
        assert_eq!(again.frame().await.unwrap().unwrap().into_trailers().unwrap(), trailers);
        assert!(again.is_end_stream() && again.frame().await.is_none());
    }

    #[tokio::test]
    async fn so_much_is_enough_or_too_much() {
        let (kept, beginning) = Kept::of(body("hello", None), 5, true, None).await.unwrap();
        assert_eq!((beginning.len(), kept.length_of_all()), (5, Some(5)));
        assert_eq!(kept.size_hint().exact(), Some(5));
        assert_eq!(
            Kept::of(body("hello", None), 4, true, None).await.err(),
            Some(NotKept::TooLong)
        );
        // The beginning is enough, and the rest comes behind it.
        let (kept, _) = Kept::of(body("hello", None), 4, false, None).await.unwrap();
        let all = Arriving::Kept(kept).collect().await.unwrap().to_bytes();
        assert_eq!(all, "hello");
    }

    #[tokio::test]
    async fn a_body_is_framed_as_it_came() {
        let mut unmeasured = Kept::whole(Bytes::from_static(b"hello"));
        unmeasured.has_length = false;
        let (kept, _) = Kept::of(Arriving::Kept(unmeasured), 100, true, None).await.unwrap();
        assert_eq!(kept.size_hint().exact(), None);
    }
}
