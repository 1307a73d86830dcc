//! How the agent hands the proxy what only the agent can get: listening sockets in the pods' namespaces, fresh sockets of
//! those namespaces, and the maps by which the kernel's capture programs and the proxy tell each other of connections.
//!
//! One JSON message per packet of a Unix `SOCK_SEQPACKET` socket, with descriptors beside it (unix(7), `SCM_RIGHTS`). The proxy speaks first.
//! Both sides are ours but need not be of one version: a `Hello` with a version that the agent does not speak is
//! answered with `Refused`, fields that are not known are ignored, and a message that is not known ends the conversation.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Version of the protocol; raised when a side could misunderstand the other.
pub const VERSION: u32 = 2;

/// Longest message in bytes.
const MAX_MESSAGE: usize = 64 * 1024;

/// Most descriptors beside one message (the kernel's own limit is `SCM_MAX_FD`, 253).
pub const MAX_DESCRIPTORS: usize = 64;

/// What the proxy says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "kebab-case")]
pub enum FromProxy {
    /// The first message.
    Hello {
        /// [`VERSION`].
        version: u32,
        /// The proxy's own version, for people.
        build: String,
    },
    /// The pod's listeners are accepted from.
    Ready {
        /// Which pod.
        cookie: u64,
    },
    /// Which of the addresses that a pod has on its interfaces the mesh gives to another workload: they are not the pod's. Takes the place of
    /// what was said of the pod before.
    Disown {
        /// Which pod.
        cookie: u64,
        /// All such addresses.
        addresses: Vec<IpAddr>,
    },
    /// Asks for sockets ahead of need.
    WantSockets {
        /// Which pod.
        cookie: u64,
        /// Of which kind.
        family: Family,
        /// How many, at most [`MAX_DESCRIPTORS`].
        count: u32,
    },
    /// Asks for a flow to be moved to the kernel. The descriptors are the proxy's two sockets: the one towards the client, then the one towards
    /// the server. The proxy reads from neither until it is answered.
    Join {
        /// The proxy's own number for it, which the answer has.
        id: u64,
        /// Bytes that may wait in a receiver.
        limit: u32,
    },
    /// A flow of the kernel has ended.
    Left {
        /// Its place, as it was told.
        index: u32,
        /// Which of those that had the place.
        generation: u32,
    },
}

/// What the agent says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "kebab-case")]
pub enum FromAgent {
    /// The answer to `Hello`, with two descriptors: the maps `HANDSHAKES` and `NOTES`. Two more if flows can be moved to the kernel: the map
    /// `FLOWS` and the program `measure`.
    Welcome {
        /// [`VERSION`].
        version: u32,
        /// The agent's own version, for people.
        build: String,
        /// Why flows cannot be moved to the kernel; `None`: they can.
        tier_off: Option<String>,
        /// Why programs that read by splice(2) are not noticed on this node; `None`: they are.
        blind: Option<String>,
    },
    /// A pod is to be served, or has other listeners than before. The descriptors are its listening sockets: those of `outbound`, then
    /// those of `inbound`.
    PodAdded(Pod),
    /// All pods that there are have been told of: what the proxy still has from an earlier conversation and was not told again is gone.
    Synced,
    /// A pod is served no more: its connections end, and everything held in its namespace is closed.
    PodRemoved {
        /// Which pod.
        cookie: u64,
    },
    /// Unconnected, non-blocking TCP sockets of a pod's namespace, one for each descriptor. None: they could not be made.
    Sockets {
        /// Which pod.
        cookie: u64,
        /// Of which kind.
        family: Family,
    },
    /// A flow was moved to the kernel.
    Joined {
        /// The proxy's number for it.
        id: u64,
        /// Its place in `FLOWS`.
        index: u32,
        /// Which of those that have the place one after another.
        generation: u32,
    },
    /// A flow was not moved to the kernel, and is as it was.
    NotJoined {
        /// The proxy's number for it.
        id: u64,
        /// Why, in a word that is a metric's label.
        reason: String,
        /// Whose socket is the reason, if it is one application's.
        side: Option<Side>,
        /// Whether it may be otherwise a little later.
        again: bool,
    },
    /// A successor serves the pods: accept no more, finish what is open, and exit.
    Drain,
    /// The agent does not work with this proxy.
    Refused {
        /// Why, and what to do.
        reason: String,
    },
}

/// A pod as the proxy is told of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// The network namespace's cookie (socket(7), `SO_NETNS_COOKIE`): names the pod for as long as the machine runs.
    pub cookie: u64,
    /// The workload's unique id, as the mesh knows it.
    pub uid: String,
    /// The pod's own addresses, the one that its sockets are bound to first, per family.
    pub addresses: Vec<IpAddr>,
    /// What its interfaces have: its own, and what it may have given itself.
    pub interfaces: Vec<IpAddr>,
    /// Where the pod's own connections arrive.
    pub outbound: Vec<SocketAddr>,
    /// Where connections to the pod are steered to.
    pub inbound: Vec<SocketAddr>,
}

/// An end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// Who opened it.
    Client,
    /// Who was connected to.
    Server,
}

/// Address family of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// `AF_INET`.
    V4,
    /// `AF_INET6`.
    V6,
}

impl Family {
    /// The family of an address.
    pub fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// Why a message could not be sent or received.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// The other side is gone.
    #[error("the other side closed the connection")]
    Closed,
    /// The socket failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The message is longer than a message may be.
    #[error("a message of {0} bytes, of which {MAX_MESSAGE} are allowed")]
    TooLong(usize),
    /// More descriptors than a message may have.
    #[error("a message with {0} descriptors, of which {MAX_DESCRIPTORS} are allowed")]
    TooManyDescriptors(usize),
    /// What came is no message of this protocol.
    #[error("a message that cannot be read ({0}); the agent and the proxy must be of versions that work together")]
    Unreadable(#[from] serde_json::Error),
}

/// Sends one message with descriptors, waiting if the socket is blocking.
///
/// # Errors
/// `WouldBlock` (in [`HandoverError::Io`]) on a non-blocking socket whose queue is full; else when the other side is gone.
pub fn send<M: Serialize>(socket: impl AsFd, message: &M, descriptors: &[BorrowedFd<'_>]) -> Result<(), HandoverError> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() > MAX_MESSAGE {
        return Err(HandoverError::TooLong(bytes.len()));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    let fits = descriptors.is_empty() || beside.push(SendAncillaryMessage::ScmRights(descriptors));
    if !fits || descriptors.len() > MAX_DESCRIPTORS {
        return Err(HandoverError::TooManyDescriptors(descriptors.len()));
    }
    loop {
        match rustix::net::sendmsg(&socket, &[IoSlice::new(&bytes)], &mut beside, SendFlags::NOSIGNAL) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(Errno::PIPE | Errno::CONNRESET) => return Err(HandoverError::Closed),
            Err(error) => return Err(io::Error::from(error).into()),
        }
    }
}

/// Receives one message and its descriptors, waiting if the socket is blocking.
///
/// # Errors
/// `WouldBlock` (in [`HandoverError::Io`]) on a non-blocking socket when there is none; `Closed` at the end.
pub fn receive<M: DeserializeOwned>(socket: impl AsFd) -> Result<(M, Vec<OwnedFd>), HandoverError> {
    let mut bytes = vec![0; MAX_MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let slices = &mut [IoSliceMut::new(&mut bytes)];
        match rustix::net::recvmsg(&socket, slices, &mut beside, RecvFlags::CMSG_CLOEXEC) {
            Ok(received) => break received,
            Err(Errno::INTR) => {}
            Err(Errno::CONNRESET) => return Err(HandoverError::Closed),
            Err(error) => return Err(io::Error::from(error).into()),
        }
    };
    let mut descriptors = Vec::new();
    for message in beside.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            descriptors.extend(fds);
        }
    }
    if received.bytes == 0 {
        return Err(HandoverError::Closed);
    }
    if received.flags.contains(ReturnFlags::TRUNC) {
        return Err(HandoverError::TooLong(received.bytes));
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        let error = "descriptors were lost; raise the limit of open files (ulimit -n)";
        return Err(io::Error::other(error).into());
    }
    Ok((serde_json::from_slice(&bytes[..received.bytes])?, descriptors))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Seek, Write};

    use rustix::net::{AddressFamily, SocketFlags, SocketType};

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
    }

    #[test]
    fn messages_and_their_descriptors_arrive_together_and_in_order() {
        let (agent, proxy) = pair();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"the same file").unwrap();
        let pod = Pod {
            cookie: 7,
            uid: "Kubernetes//Pod/shop/web".into(),
            addresses: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            interfaces: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            outbound: vec!["10.0.0.1:15001".parse().unwrap()],
            inbound: vec![],
        };
        let added = FromAgent::PodAdded(pod);
        send(&agent, &added, &[file.as_fd()]).unwrap();
        send(&agent, &FromAgent::Drain, &[]).unwrap();
        let (message, mut descriptors) = receive::<FromAgent>(&proxy).unwrap();
        assert_eq!((message, descriptors.len()), (added, 1));
        let mut copy = File::from(descriptors.remove(0));
        let mut text = String::new();
        copy.rewind().unwrap();
        copy.read_to_string(&mut text).unwrap();
        assert_eq!(text, "the same file");
        assert_eq!(receive::<FromAgent>(&proxy).unwrap().0, FromAgent::Drain);
        drop(agent);
        assert!(matches!(receive::<FromAgent>(&proxy), Err(HandoverError::Closed)));
    }

    #[test]
    fn as_many_descriptors_as_allowed_can_be_sent_and_no_more() {
        let (agent, proxy) = pair();
        let file = tempfile::tempfile().unwrap();
        let message = FromAgent::Sockets {
            cookie: 1,
            family: Family::V6,
        };
        let descriptors = vec![file.as_fd(); MAX_DESCRIPTORS + 1];
        assert!(send(&agent, &message, &descriptors).is_err());
        send(&agent, &message, &descriptors[1..]).unwrap();
        assert_eq!(receive::<FromAgent>(&proxy).unwrap().1.len(), MAX_DESCRIPTORS);
    }

    #[test]
    fn an_unknown_message_is_an_error_and_an_unknown_field_is_not() {
        let (agent, proxy) = pair();
        send(&agent, &serde_json::json!({"message": "sing"}), &[]).unwrap();
        assert!(matches!(
            receive::<FromAgent>(&proxy),
            Err(HandoverError::Unreadable(_))
        ));
        let hello = serde_json::json!({"message": "hello", "version": 1, "build": "x", "colour": "green"});
        send(&agent, &hello, &[]).unwrap();
        assert!(matches!(
            receive::<FromProxy>(&proxy),
            Ok((FromProxy::Hello { version: 1, .. }, _))
        ));
    }
}
