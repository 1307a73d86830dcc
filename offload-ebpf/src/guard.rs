//! `guard` on the devices of the pods: what would begin a connection past the other programs is dropped.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::thread;

use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, SocketType};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::bpf::{self, AttachType, Target};
use crate::bpffs;
use crate::error::Error;
use crate::links::{self, PinnedLink, Place};
use crate::object::{ETHERNET, Programs};
use crate::socket::hardware_type;

/// linux/if_arp.h.
const ARPHRD_IP6GRE: u16 = 823;
const ARPHRD_RAWIP: u16 = 519;

/// A network device of a pod.
struct Device {
    index: u32,
    name: String,
    link_header: u32,
}

/// Whether the kernel can attach to devices (tcx, Linux 6.6): where it can, it looks for the device.
pub(crate) fn is_possible() -> bool {
    let nowhere = Target::Device(u32::MAX);
    let answer = bpf::load_empty_classifier()
        .and_then(|program| bpf::create_link(program.as_fd(), nowhere, AttachType::TcxEgress, 0));
    answer.is_err_and(|error| error.raw_os_error() == Some(libc::ENODEV))
}

/// Attaches the guard to each device of the namespace but `lo`, and removes what was attached to devices that are gone.
pub(crate) fn attach(programs: &mut Programs, directory: &Path, netns: BorrowedFd<'_>) -> Result<(), Error> {
    let error = |source| Error::Namespace {
        pod: directory.display().to_string(),
        source,
    };
    // A device is looked up in the namespace of the thread that attaches to it.
    let attach = || {
        move_into_link_name_space(netns, Some(LinkNameSpaceType::Network)).map_err(|errno| error(errno.into()))?;
        let devices = devices().map_err(error)?;
        for device in &devices {
            attach_to_device(programs, device, directory)?;
        }
        remove_others(&devices, directory)
    };
    thread::scope(|scope| scope.spawn(attach).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Puts this version's program in the place of those attached to the devices of a pod.
pub(crate) fn replace(programs: &mut Programs, directory: &Path) -> Result<(), Error> {
    for pin in bpffs::list(directory)? {
        if let Some(link_header) = link_header_of(&pin)
            && let Some(link) = PinnedLink::open(&pin)?
        {
            link.replace(programs.guard(link_header)?)?;
        }
    }
    Ok(())
}

/// `guard-INDEX`, and `guard-INDEX-bare` on a device without link-layer header.
fn pin_name(device: &Device) -> String {
    let suffix = if device.link_header == 0 { "-bare" } else { "" };
    format!("guard-{}{suffix}", device.index)
}

/// What the name of a pin says; `None` if it is none of a guard.
fn link_header_of(pin: &Path) -> Option<u32> {
    let name = pin.file_name()?.to_str()?;
    name.starts_with("guard-")
        .then_some(if name.ends_with("-bare") { 0 } else { ETHERNET })
}

fn attach_to_device(programs: &mut Programs, device: &Device, directory: &Path) -> Result<(), Error> {
    let pin = directory.join(pin_name(device));
    let place = Place {
        attach_type: AttachType::TcxEgress,
        target: Target::Device(device.index),
        id: device.index.into(),
        name: format!("device {}", device.name),
    };
    if links::is_attached(&pin, &place)? {
        return Ok(());
    }
    links::attach(programs.guard(device.link_header)?, &place, &pin)
}

fn remove_others(devices: &[Device], directory: &Path) -> Result<(), Error> {
    let wanted: Vec<String> = devices.iter().map(pin_name).collect();
    for pin in bpffs::list(directory)? {
        let name = pin
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        if link_header_of(&pin).is_some() && !wanted.contains(&name) {
            links::remove(&pin)?;
        }
    }
    Ok(())
}

/// The devices of this thread's namespace that carry packets to and from elsewhere.
fn devices() -> io::Result<Vec<Device>> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    // One line for each device, after two of headings: "  eth0: 1234 …".
    let table = fs::read_to_string("/proc/thread-self/net/dev")?;
    let names = table
        .lines()
        .skip(2)
        .filter_map(|line| line.split_once(':'))
        .map(|(name, _)| name.trim());
    let mut devices = Vec::new();
    for name in names {
        let found = device(&socket, name);
        match found {
            Ok(device) => devices.extend(device),
            // It has gone since it was listed.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(devices)
}

/// `None`: a device of a kind that needs no guard, or whose headers the guard cannot read.
fn device(socket: &OwnedFd, name: &str) -> io::Result<Option<Device>> {
    let link_header = match hardware_type(socket.as_fd(), name)? {
        libc::ARPHRD_ETHER => ETHERNET,
        libc::ARPHRD_NONE | ARPHRD_RAWIP | libc::ARPHRD_PPP => 0,
        libc::ARPHRD_TUNNEL | libc::ARPHRD_TUNNEL6 | libc::ARPHRD_SIT | libc::ARPHRD_IPGRE | ARPHRD_IP6GRE => 0,
        _ => return Ok(None),
    };
    Ok(Some(Device {
        index: name_to_index(socket, name)?,
        name: name.to_owned(),
        link_header,
    }))
}
