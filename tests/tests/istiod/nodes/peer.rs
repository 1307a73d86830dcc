//! A peer of a test's own that speaks mutual TLS to a pod, with a certificate from files: who is refused already by the handshake shows with it, and
//! that handshakes go on (the nodes' own connections last, and so shake hands rarely).

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::time::timeout;
use underpass_certs::{
    CertificateFiles, ClientTls, IdentityStore, Lease, StoreSettings, Trust, TrustDomains, TrustFiles,
};
use underpass_config::Identity;
use underpass_tests::{Authority, Host, wait};

/// Where pods take tunnels.
const HBONE: u16 = 15008;
/// A frame's head (RFC 9113, section 4.1).
const FRAME_HEAD: usize = 9;

/// The account `shop/client`, by the word of one authority.
pub(crate) struct Peer {
    trust: Arc<Trust>,
    lease: Lease,
    runtime: Runtime,
}

impl Peer {
    /// With a certificate of `authority`; it believes all of `believed`.
    pub(crate) fn new(authority: &Authority, believed: &[&Authority]) -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let trust = Arc::new(Trust::new(TrustDomains::new("cluster.local", [])));
        let certificate = authority.issue("shop/client");
        let roots = authority.roots().with_file_name("believed.pem");
        let all = believed
            .iter()
            .map(|one| fs::read_to_string(one.roots()).expect("a root"));
        fs::write(&roots, all.collect::<String>()).expect("write the roots");
        let files = TrustFiles {
            roots: Some(roots),
            revocations: None,
        };
        runtime.block_on(files.load(&trust)).expect("roots");
        let files = CertificateFiles {
            chain: certificate.chain,
            key: certificate.key,
        };
        let (store, serving) = IdentityStore::new(Arc::new(files), trust.clone(), StoreSettings::default());
        runtime.spawn(serving);
        let lease = store.hold(&identity(&certificate.identity));
        runtime.block_on(lease.ready(wait::soon())).expect("a certificate");
        Self { trust, lease, runtime }
    }

    /// Shakes hands with the pod `server`, of the account `shop/web`, from `from`; says why that failed.
    pub(crate) fn shake_hands(&self, from: &Host, server: &Host) -> Result<(), String> {
        let expected = Arc::new([identity("spiffe://cluster.local/ns/shop/sa/web")]);
        let tls = ClientTls::new(self.lease.slot().clone(), self.trust.clone(), expected).expect("TLS");
        let socket = from
            .connect_unbound(server.at(HBONE))
            .map_err(|error| error.to_string())?;
        socket.set_nonblocking(true).expect("O_NONBLOCK");
        let handshake = async {
            let socket = TcpStream::from_std(socket).expect("a socket");
            let (mut stream, _) = tls
                .connect(socket, server.ip())
                .await
                .map_err(|error| error.to_string())?;
            // With TLS 1.3 a client is done before the server has looked at its certificate; that it has, its first frame tells.
            let read = stream.read_exact(&mut [0; FRAME_HEAD]).await;
            read.map(drop).map_err(|error| error.to_string())
        };
        let within = self.runtime.block_on(async { timeout(wait::soon(), handshake).await });
        within.expect("a handshake ends in time")
    }

    /// Runs `work` while this one shakes hands again and again. Panics when any handshake fails, or when there was none.
    pub(crate) fn shaking_hands(&self, from: &Host, server: &Host, work: impl FnOnce()) {
        let (stop, count) = (wait::Stop::default(), AtomicU64::new(0));
        thread::scope(|scope| {
            let stops_the_other = stop.when_dropped();
            let shaking = scope.spawn(|| {
                while !stop.is_due() {
                    self.shake_hands(from, server)?;
                    count.fetch_add(1, Ordering::SeqCst);
                }
                Ok::<(), String>(())
            });
            work();
            let before = count.load(Ordering::SeqCst);
            wait::eventually(wait::SOON, "it goes on", || {
                shaking.is_finished() || count.load(Ordering::SeqCst) > before + 1
            });
            drop(stops_the_other);
            let outcome = shaking.join().expect("no panic");
            assert_eq!(outcome, Ok(()), "after {count:?} handshakes");
        });
    }
}

fn identity(text: &str) -> Identity {
    text.parse().expect("an identity")
}
