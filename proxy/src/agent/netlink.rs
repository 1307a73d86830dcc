//! Questions to the kernel by netlink(7): one at a time, answered before the next.

use std::io;
use std::os::fd::OwnedFd;

use netlink_packet_core::{NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable};
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType};

/// What the kernel puts into one answer at most (NLMSG_GOODSIZE, and 32 KiB for dumps: netlink_dump in af_netlink.c).
const LONGEST: usize = 64 * 1024;

/// `NETLINK_ROUTE` is number 0, which stands for no protocol.
pub const ROUTE: Option<Protocol> = None;

/// A netlink socket of the namespace that it was made in.
pub struct Conversation(OwnedFd);

impl Conversation {
    /// Opens the socket.
    ///
    /// # Errors
    /// Those of socket(2) and connect(2).
    pub fn start(protocol: Option<Protocol>) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, protocol)?;
        rustix::net::connect(&socket, &SocketAddrNetlink::new(0, 0))?;
        Ok(Self(socket))
    }

    /// Sends a request and waits for its acknowledgement.
    ///
    /// # Errors
    /// The kernel's.
    pub fn ask<M>(&self, request: M, flags: u16) -> io::Result<()>
    where
        M: NetlinkSerializable + NetlinkDeserializable + Into<NetlinkPayload<M>>,
    {
        self.send(request, flags)?;
        let mut buffer = vec![0; LONGEST];
        let (length, _) = rustix::net::recv(&self.0, &mut buffer[..], RecvFlags::empty())?;
        match parse::<M>(&buffer[..length])?.payload {
            NetlinkPayload::Error(error) => error.code.map_or(Ok(()), |_| Err(error.to_io())),
            _ => Err(io::Error::other("the kernel did not acknowledge a netlink request")),
        }
    }

    /// Sends a request for a list, and gives `each` the items of the answer.
    ///
    /// # Errors
    /// The kernel's.
    pub fn list<M>(&self, request: M, flags: u16, mut each: impl FnMut(M)) -> io::Result<()>
    where
        M: NetlinkSerializable + NetlinkDeserializable + Into<NetlinkPayload<M>>,
    {
        self.send(request, flags)?;
        let mut buffer = vec![0; LONGEST];
        loop {
            let (length, _) = rustix::net::recv(&self.0, &mut buffer[..], RecvFlags::empty())?;
            let mut rest = &buffer[..length];
            while !rest.is_empty() {
                let message = parse::<M>(rest)?;
                let length = (message.header.length as usize).next_multiple_of(4);
                match message.payload {
                    NetlinkPayload::Done(_) => return Ok(()),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    NetlinkPayload::InnerMessage(item) => each(item),
                    _ => {}
                }
                rest = rest.get(length..).unwrap_or_default();
            }
        }
    }

    fn send<M: NetlinkSerializable + Into<NetlinkPayload<M>>>(&self, request: M, flags: u16) -> io::Result<()> {
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        let mut message = NetlinkMessage::new(header, request.into());
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        rustix::net::send(&self.0, &bytes, SendFlags::empty())?;
        Ok(())
    }
}

fn parse<M: NetlinkDeserializable>(bytes: &[u8]) -> io::Result<NetlinkMessage<M>> {
    NetlinkMessage::deserialize(bytes).map_err(io::Error::other)
}
