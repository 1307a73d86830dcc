//! Connections that are older than their pod's enrolment.
//!
//! They were made without policy and go past the proxy; so they are ended, as the kernel ends connections of an address that
//! is taken away (SOCK_DESTROY, sock_diag(7)). Applications see a reset and connect again, now through the proxy.

use std::io;
use std::net::IpAddr;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags};
use netlink_packet_sock_diag::{SockDiagDestroy, SockDiagMessage};
use rustix::net::netlink::SOCK_DIAG;

use super::netlink::Conversation;

/// The attribute with the id of the cgroup that made a socket (include/uapi/linux/inet_diag.h; since Linux 5.9).
const INET_DIAG_CGROUP_ID: u16 = 21;

/// Ends the TCP connections of the namespace that the calling thread is in, but those within the pod (`own` are its addresses) and
/// those that processes of the cgroups `spared` made. Returns how many.
///
/// # Errors
/// The kernel's; `Unsupported` when it was built without `CONFIG_INET_DIAG_DESTROY`.
pub fn end_all(own: &[IpAddr], spared: &[u64]) -> io::Result<usize> {
    let conversation = Conversation::start(Some(SOCK_DIAG))?;
    let mut found = Vec::new();
    for (family, anything) in [(AF_INET, SocketId::new_v4()), (AF_INET6, SocketId::new_v6())] {
        let states = StateFlags::all() - (StateFlags::LISTEN | StateFlags::CLOSE | StateFlags::TIME_WAIT);
        let request = SockDiagMessage::InetRequest(request(family, states, anything));
        conversation.list(request, NLM_F_REQUEST | NLM_F_DUMP, |message| {
            if let SockDiagMessage::InetResponse(socket) = message
                && leaves_the_pod(&socket, own)
                && !cgroup_of(&socket).is_some_and(|cgroup| spared.contains(&cgroup))
            {
                found.push((family, socket.header.socket_id.clone()));
            }
        })?;
    }
    let mut ended = 0;
    for (family, socket) in found {
        let request = SockDiagMessage::InetRequest(request(family, StateFlags::all(), socket));
        match conversation.ask(SockDiagDestroy::new(request), NLM_F_REQUEST | NLM_F_ACK) {
            Ok(()) => ended += 1,
            // It has ended by itself.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(ended)
}

fn request(family: u8, states: StateFlags, socket_id: SocketId) -> InetRequest {
    InetRequest {
        family,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states,
        socket_id,
    }
}

fn leaves_the_pod(socket: &InetResponse, own: &[IpAddr]) -> bool {
    let remote = socket.header.socket_id.destination_address.to_canonical();
    !remote.is_loopback() && !own.contains(&remote)
}

fn cgroup_of(socket: &InetResponse) -> Option<u64> {
    use netlink_packet_core::Nla as _;
    socket.nlas.iter().find_map(|attribute| match attribute {
        Nla::Other(other) if other.kind() == INET_DIAG_CGROUP_ID => {
            let mut bytes = [0; 8];
            (other.value_len() == bytes.len()).then(|| other.emit_value(&mut bytes))?;
            Some(u64::from_ne_bytes(bytes))
        }
        _ => None,
    })
}
