//! Enrolling pods and letting them go.
//!
//! Everything here can be repeated: an agent that was killed half-way, or that adopts what another left, enrols again and ends up with
//! what it would have had. What is in force stays in force meanwhile; listeners and addresses are exchanged in place.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::{MutexGuard, PoisonError};

use underpass_ebpf_abi::{MAX_PODS, PodEntry, REFUSING, Slot, to_bytes, v4_to_bytes};

use crate::bpf::{AttachType, Target};
use crate::bpffs;
use crate::capture::{Capture, map_error, remove_pod_links};
use crate::error::Error;
use crate::guard;
use crate::links::{self, PinnedLink, Place};
use crate::object::Programs;

/// A pod to enrol.
#[derive(Clone, Debug)]
pub struct PodSpec<'a> {
    /// Cookie of its network namespace ([`crate::netns_cookie`]).
    pub cookie: u64,
    /// Its number, below [`MAX_PODS`], which no other enrolled pod has.
    pub slot: u32,
    /// Its network namespace.
    pub netns: BorrowedFd<'a>,
    /// Where its IPv4 connections are sent: one of its own addresses, and the port of the outbound listener there. None: they are refused.
    pub v4: Option<(Ipv4Addr, u16)>,
    /// Where its IPv6 connections are sent.
    pub v6: Option<(Ipv6Addr, u16)>,
    /// Its own addresses.
    pub addresses: Vec<IpAddr>,
    /// The listening socket to which IPv4 connections to the pod are steered. None: they are refused.
    pub inbound_v4: Option<BorrowedFd<'a>>,
    /// The same for IPv6.
    pub inbound_v6: Option<BorrowedFd<'a>>,
    /// How many captured connections may be in their handshake at once.
    pub handshake_limit: u32,
}

impl PodSpec<'_> {
    fn entry(&self, flags: u32) -> PodEntry {
        PodEntry {
            slot: self.slot,
            flags,
            address_v4: self.v4.map_or([0; 16], |(address, _)| v4_to_bytes(address)),
            address_v6: self.v6.map_or([0; 16], |(address, _)| address.octets()),
            port_v4: self.v4.map_or(0, |(_, port)| port),
            port_v6: self.v6.map_or(0, |(_, port)| port),
            handshake_limit: self.handshake_limit,
        }
    }
}

/// Places of a pod's listeners in `LISTENERS`.
fn listener_indices(slot: u32) -> [u32; 2] {
    [slot * 2, slot * 2 + 1]
}

impl Capture {
    /// Captures a pod, or changes the listeners, addresses and limit of one that is captured. From its return on the pod's new
    /// connections are captured and those to it steered. A pod that was set to refuse stays so.
    ///
    /// # Errors
    /// When the slot is another pod's, a map is full, or a program cannot be attached. A pod that was not enrolled before is
    /// then not enrolled.
    pub fn enrol(&self, pod: &PodSpec<'_>) -> Result<(), Error> {
        self.check_slot(pod)?;
        let before = self.pod(pod.cookie)?;
        let slot_is_kept = before.is_some_and(|before| before.slot == pod.slot);
        let enrolled = self
            .fill_maps(pod, before)
            .and_then(|()| self.attach_to_pod(pod, slot_is_kept));
        if enrolled.is_err() && before.is_none() {
            // The first error is the one to tell.
            let _ = self.withdraw(pod.cookie);
        }
        enrolled
    }

    fn check_slot(&self, pod: &PodSpec<'_>) -> Result<(), Error> {
        let (cookie, slot) = (pod.cookie, pod.slot);
        if slot >= MAX_PODS {
            return Err(Error::NoSuchSlot { cookie, slot });
        }
        let other = self
            .pods()?
            .into_iter()
            .find(|(owner, entry)| *owner != cookie && entry.slot == slot);
        match other {
            Some((owner, _)) => Err(Error::SlotTaken { cookie, slot, owner }),
            None => Ok(()),
        }
    }

    fn fill_maps(&self, pod: &PodSpec<'_>, before: Option<PodEntry>) -> Result<(), Error> {
        let maps = &self.maps;
        for (index, listener) in listener_indices(pod.slot).iter().zip([pod.inbound_v4, pod.inbound_v6]) {
            let written = match listener {
                Some(listener) => maps.listeners.set(index, &listener.as_raw_fd()),
                None => self.forget_listener(*index),
            };
            written.map_err(map_error("write", "LISTENERS"))?;
        }
        self.set_addresses(pod)?;
        if before.is_none_or(|before| before.slot != pod.slot) {
            let slot = Slot {
                netns: pod.cookie,
                handshakes: 0,
            };
            maps.slots.set(&pod.slot, &slot).map_err(map_error("write", "SLOTS"))?;
        }
        let flags = before.map_or(0, |before| before.flags);
        maps.pods
            .set(&pod.cookie, &pod.entry(flags))
            .map_err(map_error("write", "PODS"))?;
        if let Some(before) = before.filter(|before| before.slot != pod.slot) {
            self.forget_listeners(before.slot)?;
        }
        Ok(())
    }

    fn forget_listener(&self, index: u32) -> std::io::Result<()> {
        match self.maps.listeners.remove(&index) {
            // sock_map_delete_elem says EINVAL where there is no socket.
            Err(error) if error.raw_os_error() != Some(libc::EINVAL) => Err(error),
            _ => Ok(()),
        }
    }

    fn forget_listeners(&self, slot: u32) -> Result<(), Error> {
        for index in listener_indices(slot) {
            self.forget_listener(index).map_err(map_error("write", "LISTENERS"))?;
        }
        Ok(())
    }

    /// The captured pod that an address belongs to.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn owner(&self, address: IpAddr) -> Result<Option<u64>, Error> {
        let owner = self.maps.addresses.get(&to_bytes(address));
        owner.map_err(|source| Error::Map {
            action: "read",
            map: "ADDRESSES",
            source,
        })
    }

    fn set_addresses(&self, pod: &PodSpec<'_>) -> Result<(), Error> {
        let addresses: Vec<[u8; 16]> = pod.addresses.iter().copied().map(to_bytes).collect();
        for address in &addresses {
            let written = self.maps.addresses.set(address, &pod.cookie);
            written.map_err(map_error("write", "ADDRESSES"))?;
        }
        self.forget_addresses(pod.cookie, &addresses)
    }

    /// Forgets the addresses of a pod but those in `keep`.
    fn forget_addresses(&self, cookie: u64, keep: &[[u8; 16]]) -> Result<(), Error> {
        let addresses = &self.maps.addresses;
        let forget = || {
            for (address, owner) in addresses.entries()? {
                if owner == cookie && !keep.contains(&address) {
                    addresses.remove(&address)?;
                }
            }
            Ok(())
        };
        forget().map_err(map_error("write", "ADDRESSES"))
    }

    fn attach_to_pod(&self, pod: &PodSpec<'_>, slot_is_kept: bool) -> Result<(), Error> {
        bpffs::make_directory(&self.pins.pod(pod.cookie))?;
        let inode = netns_inode(pod)?;
        let place = Place {
            attach_type: AttachType::SkLookup,
            target: Target::Fd(pod.netns),
            id: inode,
            name: format!("network namespace of pod {}", pod.cookie),
        };
        let directory = self.pins.pod(pod.cookie);
        let pin = directory.join("inbound");
        let mut programs = self.programs();
        if !(slot_is_kept && links::is_attached(&pin, &place)?) {
            links::attach(programs.inbound(pod.slot)?.as_fd(), &place, &pin)?;
        }
        if self.can_guard {
            guard::attach(&mut programs, &directory, pod.netns)?;
        }
        Ok(())
    }

    pub(crate) fn programs(&self) -> MutexGuard<'_, Programs> {
        // Nothing in it is ever half-done.
        self.programs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts this version's programs in the place of those that an earlier agent attached to pods.
    pub(crate) fn replace_pod_programs(&self) -> Result<(), Error> {
        let mut programs = self.programs();
        for (cookie, entry) in self.pods()? {
            let directory = self.pins.pod(cookie);
            if let Some(link) = PinnedLink::open(&directory.join("inbound"))? {
                link.replace(programs.inbound(entry.slot)?.as_fd())?;
            }
            guard::replace(&mut programs, &directory)?;
        }
        Ok(())
    }

    /// Refuses, or no longer refuses, all that would be captured from the pod or steered in it: while no proxy serves it.
    ///
    /// # Errors
    /// When the pod is not enrolled.
    pub fn set_refusing(&self, cookie: u64, refusing: bool) -> Result<(), Error> {
        let mut entry = self.pod(cookie)?.ok_or(Error::UnknownPod { cookie })?;
        entry.flags = if refusing {
            entry.flags | REFUSING
        } else {
            entry.flags & !REFUSING
        };
        self.maps.pods.set(&cookie, &entry).map_err(map_error("write", "PODS"))
    }

    /// Frees a pod: its connections go where they would without a mesh. Does nothing if it is not enrolled.
    ///
    /// # Errors
    /// When something could not be removed; calling it again goes on where it stopped.
    pub fn withdraw(&self, cookie: u64) -> Result<(), Error> {
        remove_pod_links(&self.pins.pod(cookie))?;
        let entry = self.pod(cookie)?;
        self.forget_addresses(cookie, &[])?;
        self.maps.pods.remove(&cookie).map_err(map_error("write", "PODS"))?;
        if let Some(entry) = entry {
            self.forget_listeners(entry.slot)?;
        }
        self.remove_handshakes(|key, _| key.netns == cookie)
    }

    /// The enrolled pods by the cookie of their network namespace.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn pods(&self) -> Result<Vec<(u64, PodEntry)>, Error> {
        self.maps.pods.entries().map_err(map_error("read", "PODS"))
    }

    pub(crate) fn pod(&self, cookie: u64) -> Result<Option<PodEntry>, Error> {
        self.maps.pods.get(&cookie).map_err(map_error("read", "PODS"))
    }
}

fn netns_inode(pod: &PodSpec<'_>) -> Result<u64, Error> {
    let file = pod.netns.try_clone_to_owned().map(std::fs::File::from);
    let inode = file.and_then(|file| file.metadata()).map(|metadata| metadata.ino());
    inode.map_err(|source| Error::Namespace {
        pod: format!("pod {}", pod.cookie),
        source,
    })
}
