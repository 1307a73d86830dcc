//! What peers send and the proxy reads, with what must hold of it whatever it is: for the fuzz targets (`proxy/fuzz`), and for their corpus in `cargo test`.
//!
//! Each function takes any bytes, panics when a rule is broken, and answers whether the bytes meant anything: a corpus of which none does tests nothing.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::server;
use http::{HeaderName, HeaderValue, Method, Request, Response, Uri};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use underpass_config::{
    ApplicationTunnel, Config, Destination, HboneSettings, Identity, MeshChange, Workload, WorkloadUid,
};

use crate::capture::Pod;
use crate::hbone::{connect, proxy_protocol, server::settings, target};
pub use crate::http::filters::ext_authz::fuzzing::ext_authz;
pub use crate::http::filters::jwt::fuzzing::jwt;
pub use crate::http::fuzzing::{http_answer, http_config, http_request, http_sniff, http1};
use crate::listener;

/// What a client's connection begins with (RFC 9113, section 3.4); libFuzzer needn't find it.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// More of a peer's words don't belong into a line of the log.
const LONGEST_DETAIL: usize = 2048;
/// The pod that requests come to.
const POD: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const MESH: &str = "workloads:\n- {uid: web, name: web-1, namespace: shop, addresses: [10.0.0.1]}\n\
    - {uid: db, name: db-1, namespace: shop, addresses: [10.0.0.2]}\n\
    services:\n- {name: web, namespace: shop, vips: [10.96.0.1], ports: [{port: 80, target_port: 8080}], endpoints: [shop/web-1]}\n\
    - {name: db, namespace: shop, vips: [10.96.0.2], ports: [{port: 80}], endpoints: [shop/db-1]}\n";

/// The bytes of a client behind the preface of HTTP/2, as a server of HBONE reads them. True if a request led anywhere.
pub fn hbone(bytes: &[u8]) -> bool {
    let wire = Wire::new([PREFACE, bytes].concat().into());
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.expect("a runtime").block_on(async {
        let Ok(mut connection) = settings(&HboneSettings::default()).handshake::<_, Bytes>(wire).await else {
            return false;
        };
        let mut led = false;
        while let Some(Ok((request, respond))) = connection.accept().await {
            let (head, _body) = request.into_parts();
            let leads = judge(&Request::from_parts(head, ()));
            answer(respond, leads);
            led |= leads;
        }
        led
    })
}

fn answer(mut respond: server::SendResponse<Bytes>, leads: bool) {
    let status = if leads { 200 } else { 400 };
    let response = Response::builder().status(status).body(()).expect("a response");
    // The peer may have reset the stream already.
    let _ = respond.send_response(response, !leads);
}

/// The head of a request as text: `METHOD AUTHORITY`, and lines of `NAME: VALUE`. True if it leads anywhere.
pub fn connect(bytes: &[u8]) -> bool {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let first = lines.next().unwrap_or_default();
    let mut words = first.splitn(2, |byte| *byte == b' ');
    let (method, authority) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (Ok(method), Ok(uri)) = (Method::from_bytes(method), Uri::try_from(authority)) else {
        return false;
    };
    let mut request = Request::builder()
        .method(method)
        .uri(uri)
        .body(())
        .expect("parsed parts");
    for line in lines {
        let mut parts = line.splitn(2, |byte| *byte == b':');
        let name = HeaderName::from_bytes(parts.next().unwrap_or_default());
        let value = HeaderValue::from_bytes(parts.next().unwrap_or_default().trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value) {
            request.headers_mut().append(name, value);
        }
    }
    judge(&request)
}

/// A request leads to the pod that it came to, whatever it says, or nowhere and says why in a line; its fields change nothing of that.
fn judge(request: &Request<()>) -> bool {
    let mut bare = Request::builder()
        .method(request.method())
        .uri(request.uri())
        .body(())
        .expect("the parts of a request");
    *bare.extensions_mut() = request.extensions().clone();
    assert_eq!(
        connect::destination(request),
        connect::destination(&bare),
        "fields decide nothing"
    );
    match connect::destination(request) {
        Ok(destination) => assert_one_spelling(&destination),
        Err(why) => assert!(!why.contains(char::is_control) && why.len() < LONGEST_DETAIL, "{why:?}"),
    }
    let mut leads = false;
    for (config, pod) in places() {
        match target::of(config, pod, request) {
            Ok(found) => {
                assert_eq!(found.address.ip(), IpAddr::V4(POD), "it came to another pod");
                assert_ne!(found.address.port(), 0);
                leads = true;
            }
            Err(refused) => {
                let detail = refused.detail.unwrap_or_default();
                assert!(!detail.contains(char::is_control), "{detail:?}");
            }
        }
    }
    leads
}

fn assert_one_spelling(destination: &Destination) {
    assert_eq!(destination.to_string().parse().as_ref(), Ok(destination));
}

/// The mesh, with a pod as it is and with one behind an application tunnel.
fn places() -> &'static [(Config, Arc<Pod>)] {
    static PLACES: OnceLock<Vec<(Config, Arc<Pod>)>> = OnceLock::new();
    PLACES.get_or_init(|| {
        let tunnel = ApplicationTunnel {
            port: 15088,
            proxy_protocol: true,
        };
        [None, Some(tunnel)].into_iter().map(place).collect()
    })
}

fn place(tunnel: Option<ApplicationTunnel>) -> (Config, Arc<Pod>) {
    let mut config = Config::from_yaml(MESH).expect("a mesh");
    let mut workload = Workload::clone(
        config
            .mesh
            .workload(&WorkloadUid::new("web"))
            .expect("it is in the mesh"),
    );
    workload.application_tunnel = tunnel;
    config.mesh.apply([MeshChange::Workload(workload)]);
    (config, Arc::new(Pod::at_address("web", POD.into())))
}

/// What a client of a listener sends first: SOCKS5 or HTTP CONNECT. True if it is a whole message.
pub fn listeners(bytes: &[u8]) -> bool {
    let read = listener::read_all_ways(bytes);
    for (destination, length) in &read {
        assert!(*length <= bytes.len(), "no more is taken than was sent");
        if let Some(destination) = destination {
            assert_one_spelling(destination);
        }
    }
    !read.is_empty()
}

/// The header that an application is told its client by, of two addresses and an identity in `bytes`; read as the specification says it is (version 2
/// of `proxy-protocol.txt`, sections 2.2 and 2.2.3). True if there was an identity.
pub fn proxy_protocol(bytes: &[u8]) -> bool {
    let Some((ends, identity)) = bytes.split_at_checked(38) else {
        return false;
    };
    let (client, destination) = (address(&ends[..19]), address(&ends[19..]));
    let identity: Option<Identity> = str::from_utf8(identity).ok().and_then(|text| text.parse().ok());
    assert_line(client, destination);
    let header = proxy_protocol::header(client, destination, identity.as_ref());
    let (head, rest) = header.split_at(16);
    assert_eq!(&head[..13], b"\r\n\r\n\0\r\nQUIT\n\x21");
    assert_eq!(usize::from(u16::from_be_bytes([head[14], head[15]])), rest.len());
    let size = match head[13] {
        0x11 => 4,
        0x21 => 16,
        other => panic!("a family of {other:#x}"),
    };
    let (addresses, rest) = rest.split_at(2 * size);
    let (ports, fields) = rest.split_at(4);
    for (index, end) in [client, destination].into_iter().enumerate() {
        let ip = ip(&addresses[index * size..][..size]);
        assert_eq!(ip.to_canonical(), end.ip().to_canonical());
        assert_eq!(u16::from_be_bytes([ports[2 * index], ports[2 * index + 1]]), end.port());
    }
    let said = match fields {
        [] => None,
        [0xd0, high, low, value @ ..] => {
            assert_eq!(usize::from(u16::from_be_bytes([*high, *low])), value.len());
            Some(value)
        }
        other => panic!("a field that nobody knows: {other:?}"),
    };
    let expected = identity.map(|identity| identity.to_string());
    assert_eq!(
        said,
        expected.as_deref().map(str::as_bytes),
        "nothing but the identity is said, and whole"
    );
    said.is_some()
}

/// The header of version 1 says the same (section 2.1), in at most 107 bytes.
fn assert_line(client: SocketAddr, destination: SocketAddr) {
    let line = proxy_protocol::line(client, destination);
    let words: Vec<&str> = line.strip_suffix("\r\n").expect("it ends").split(' ').collect();
    let ["PROXY", "TCP4" | "TCP6", from, to, from_port, to_port] = words[..] else {
        panic!("{line:?}");
    };
    assert!(line.len() <= 107, "{line:?}");
    for (ip, port, end) in [(from, from_port, client), (to, to_port, destination)] {
        let ip: IpAddr = ip.parse().expect("an address");
        assert_eq!(
            (ip.is_ipv4(), ip.to_canonical()),
            (words[1] == "TCP4", end.ip().to_canonical())
        );
        assert_eq!(port.parse(), Ok(end.port()));
    }
}

/// An address of 19 bytes: the family, then as many octets as it has, and the port at the end.
fn address(bytes: &[u8]) -> SocketAddr {
    let octets = if bytes[0].is_multiple_of(2) {
        &bytes[1..5]
    } else {
        &bytes[1..17]
    };
    SocketAddr::new(ip(octets), u16::from_be_bytes([bytes[17], bytes[18]]))
}

fn ip(octets: &[u8]) -> IpAddr {
    match <[u8; 4]>::try_from(octets) {
        Ok(v4) => Ipv4Addr::from(v4).into(),
        Err(_) => Ipv6Addr::from(<[u8; 16]>::try_from(octets).expect("4 or 16 octets")).into(),
    }
}

/// A peer that has sent everything already, takes everything, and closes after a while: h2 tells of no request of a connection whose end it has seen.
pub(crate) struct Wire {
    left: Bytes,
    patience: u8,
}

impl Wire {
    /// One that has sent `bytes`.
    pub(crate) fn new(bytes: Bytes) -> Self {
        Self {
            left: bytes,
            patience: u8::MAX,
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.left.is_empty() && self.patience > 0 {
            self.patience -= 1;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let length = self.left.len().min(into.remaining());
        into.put_slice(&self.left.split_to(length));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    /// Each seed, cut off anywhere, and with each of its bytes another; and at least one of a target's seeds means something.
    fn replay(target: &str, judge: fn(&[u8]) -> bool) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
        let mut understood = 0;
        for seed in fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
            let mut bytes = fs::read(seed.unwrap().path()).unwrap();
            understood += usize::from(judge(&bytes));
            for at in 0..bytes.len() {
                judge(&bytes[..at]);
                bytes[at] ^= 0x55;
                judge(&bytes);
                bytes[at] ^= 0x55;
            }
        }
        assert!(understood > 0, "no seed of {target} means anything");
    }

    #[test]
    fn what_peers_may_send_keeps_the_rules() {
        replay("hbone", hbone);
        replay("connect", connect);
        replay("listeners", listeners);
        replay("proxy_protocol", proxy_protocol);
        replay("http_request", http_request);
        replay("http_answer", http_answer);
        replay("http_sniff", http_sniff);
        replay("http_config", http_config);
        replay("http1", http1);
        replay("jwt", jwt);
        replay("ext_authz", ext_authz);
    }
}
