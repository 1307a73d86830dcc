//! A pod that is enrolled, or about to be.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use underpass_ebpf::PodSpec;

use super::control::{Line, PodState, PodView};
use super::interfaces::is_bindable;
use super::listeners::Listeners;
use super::namespace::Namespace;
use super::state::Record;
use crate::handover;

/// Connections of one pod that may be in their handshake at once. With it no pod can fill the table that all share
/// (`HANDSHAKES`, 262 144 entries) alone; it is twice the listeners' backlog.
const HANDSHAKE_LIMIT: u32 = 8192;

/// All pods of the agent, by cookie.
pub type Pods = BTreeMap<u64, Pod>;

/// A pod.
#[derive(Debug)]
pub struct Pod {
    /// What is remembered on disk.
    pub record: Record,
    /// Its network namespace.
    pub namespace: Arc<Namespace>,
    /// Its addresses, the one that its sockets are bound to first.
    pub addresses: Vec<IpAddr>,
    /// What its interfaces had at enrolment: its own addresses, and what it may have given itself.
    pub interfaces: Vec<IpAddr>,
    /// Which of them are another workload's, as proxies say.
    pub disowned: Vec<IpAddr>,
    /// `None` while its connections are refused and there is no proxy.
    pub listeners: Option<Listeners>,
    /// Whether the kernel refuses its connections.
    pub refusing: bool,
    /// Since when no proxy accepts its connections.
    pub unserved_since: Option<Instant>,
    /// `Some` until the kernel captures it.
    pub starting: Option<Starting>,
}

/// An enrolment under way: proxies were told, and the first that is ready ends the wait.
#[derive(Debug)]
pub struct Starting {
    /// When not to wait any longer.
    pub deadline: Instant,
    /// Who wants to know.
    pub callers: Vec<Line>,
    /// Whether connections of before the enrolment are to be ended.
    pub fresh: bool,
}

impl Pod {
    /// What the kernel is told.
    pub fn spec(&self) -> PodSpec<'_> {
        let mut spec = PodSpec {
            cookie: self.record.cookie,
            slot: self.record.slot,
            netns: self.namespace.as_fd(),
            v4: None,
            v6: None,
            addresses: self.addresses.clone(),
            inbound_v4: None,
            inbound_v6: None,
            handshake_limit: HANDSHAKE_LIMIT,
        };
        let Some(listeners) = &self.listeners else { return spec };
        for listener in &listeners.outbound {
            match listener.address {
                SocketAddr::V4(address) => spec.v4 = Some((*address.ip(), address.port())),
                SocketAddr::V6(address) => spec.v6 = Some((*address.ip(), address.port())),
            }
        }
        for listener in &listeners.inbound {
            let socket = Some(listener.socket.as_fd());
            match listener.address {
                SocketAddr::V4(_) => spec.inbound_v4 = socket,
                SocketAddr::V6(_) => spec.inbound_v6 = socket,
            }
        }
        spec
    }

    /// What proxies are told, if there are listeners to hand them.
    pub fn introduction(&self) -> Option<(handover::Pod, &Listeners)> {
        let listeners = self.listeners.as_ref()?;
        let bindable = |addresses: &[IpAddr]| addresses.iter().copied().filter(|ip| is_bindable(*ip)).collect();
        let pod = handover::Pod {
            cookie: self.record.cookie,
            uid: self.record.uid.clone(),
            addresses: bindable(&self.addresses),
            interfaces: bindable(&self.interfaces),
            outbound: listeners.outbound_addresses(),
            inbound: listeners.inbound_addresses(),
        };
        Some((pod, listeners))
    }

    /// What people are told.
    pub fn view(&self, served: bool) -> PodView {
        let listeners = self.listeners.as_ref();
        PodView {
            uid: self.record.uid.clone(),
            netns: self.record.place.path().display().to_string(),
            cookie: self.record.cookie,
            addresses: self.addresses.clone(),
            outbound: listeners.map(Listeners::outbound_addresses).unwrap_or_default(),
            inbound: listeners.map(Listeners::inbound_addresses).unwrap_or_default(),
            since: humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(self.record.since)).to_string(),
            state: match (served, self.refusing) {
                (_, true) => PodState::Refused,
                (true, false) => PodState::Served,
                (false, false) => PodState::Waiting,
            },
        }
    }
}
