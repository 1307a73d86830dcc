//! A peer of the mesh, with a certificate, that sends anything.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use underpass_certs::ClientTls;

use super::world::{World, web};

/// What a client's connection begins with (RFC 9113, section 3.4), with empty SETTINGS.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// Frames of one connection.
const FRAMES: usize = 40;
/// Frame types (section 6).
pub const HEADERS: u8 = 1;

/// A frame that is nearly one: its parts are each plausible.
fn frame(random: &mut fastrand::Rng, authority: &str) -> Vec<u8> {
    let kind = random.u8(0..11);
    let payload = match random.u8(0..4) {
        0 => (0..random.usize(0..80)).map(|_| random.u8(..)).collect(),
        _ if kind == HEADERS => connect(authority),
        1 => vec![0; 8],
        _ => vec![0; random.usize(0..12)],
    };
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    // END_HEADERS, or what it means in other frames, is set more often than not.
    let flags = random.u8(..) & 0x2d | if random.bool() { 4 } else { 0 };
    bytes.extend([kind, flags]);
    bytes.extend(
        [0, 1, 3, 5, 7, 2, 0x7fff_ffff][random.usize(..7)]
            .min(0x7fff_ffff_u32)
            .to_be_bytes(),
    );
    bytes.extend(payload);
    bytes
}

/// The fields of a CONNECT, as HPACK's literals with names of its static table (RFC 7541, appendix A).
pub fn connect(authority: &str) -> Vec<u8> {
    let mut fields = vec![2, 7];
    fields.extend(b"CONNECT");
    fields.extend([1, authority.len() as u8]);
    fields.extend(authority.bytes());
    fields
}

#[tokio::test]
async fn no_frames_panic_the_server_or_keep_it_from_serving_others() {
    let world = World::new("").await;
    let peer = world.peer("client").await;
    let (target, cycles) = (world.target(), std::env::var("UNDERPASS_CYCLES"));
    let cycles: u64 = cycles.map_or(60, |cycles| cycles.parse().expect("a number"));
    let first = fastrand::u64(..1 << 32);
    for seed in first..first + cycles {
        let mut random = fastrand::Rng::with_seed(seed);
        let (slot, trust) = (peer.pod.lease.slot().clone(), peer.trust.clone());
        let tls = ClientTls::new(slot, trust, [web()].into()).unwrap();
        let socket = TcpStream::connect(world.gateway).await.unwrap();
        let (mut stream, _) = tls.connect(socket, world.gateway.ip()).await.unwrap();
        let mut bytes = PREFACE.to_vec();
        for _ in 0..FRAMES {
            bytes.extend(frame(&mut random, &target));
        }
        // Nothing comes back, or an answer, or the end.
        let _ = stream.write_all(&bytes).await;
        let _ = stream.flush().await;
        let mut answer = [0; 4096];
        let _ = tokio::time::timeout(Duration::from_millis(5), async {
            while stream.read(&mut answer).await.is_ok_and(|length| length > 0) {}
        })
        .await;
        assert_eq!(world.panics.load(Ordering::SeqCst), 0, "seed {seed}");
    }
    // What the application was connected for meanwhile waits in its queue: take the last.
    let (_tunnel, _application) = world.connect(&peer).await;
}
