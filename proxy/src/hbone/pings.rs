//! Notices a peer that is gone without a word.
//!
//! Only a connection with streams is pinged: what an idle one would show is found out, by a ping at once, when it is used again.

use std::future::poll_fn;

use h2::{Ping, PingPong};
use tokio::time::{Instant, sleep_until, timeout};

use underpass_config::HbonePing;

/// Resolves when the peer has not answered a ping in time. `busy` resolves when the connection has streams.
pub async fn unanswered<F: Future<Output = ()>>(
    pings: Option<PingPong>,
    settings: HbonePing,
    mut busy: impl FnMut() -> F,
) {
    let Some(mut pings) = pings else {
        return std::future::pending().await;
    };
    loop {
        busy().await;
        let next = Instant::now() + settings.interval;
        if pings.send_ping(Ping::opaque()).is_err() {
            // The connection has ended, which others notice.
            return std::future::pending().await;
        }
        match timeout(settings.timeout, poll_fn(|cx| pings.poll_pong(cx))).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) => return std::future::pending().await,
            Err(_) => return,
        }
        sleep_until(next).await;
    }
}
