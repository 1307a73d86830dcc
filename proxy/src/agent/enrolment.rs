//! Enrolling pods and letting them go.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::control::{Answer, Line, Which};
use super::interfaces::is_bindable;
use super::listeners::Listeners;
use super::namespace::{Namespace, NamespaceError, Place};
use super::pods::{Pod, Starting};
use super::state::{Record, StateError};
use super::{Agent, cgroups, connections, interfaces};
use crate::socket;

/// How long an enrolment waits for a proxy to accept from the pod's listeners before the kernel leads connections there.
const READY_PATIENCE: Duration = Duration::from_secs(5);

/// Why a pod is not captured.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// Its namespace.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// The workload's uid is none.
    #[error("{0:?} is no workload uid; give one without blanks, such as Kubernetes//Pod/NAMESPACE/NAME")]
    Uid(String),
    /// The namespace is another workload's.
    #[error(
        "the network namespace of {place} is enrolled as workload {uid}; free it first: underpass remove --uid {uid}"
    )]
    OtherWorkload {
        /// Where it is found.
        place: Place,
        /// As whom.
        uid: String,
    },
    /// The workload is in another namespace.
    #[error(
        "workload {uid} is enrolled in the network namespace of {place}; free it first: underpass remove --uid {uid}"
    )]
    OtherNamespace {
        /// The workload.
        uid: String,
        /// Where.
        place: Place,
    },
    /// A process of the pod would go past the proxy.
    #[error(
        "process {pid} of this network namespace runs in the proxy's cgroup {}, so its connections could not be captured; move the \
         proxy to a cgroup of its own (--own-cgroup)",
        cgroup.display()
    )]
    ProxysCgroup {
        /// The process.
        pid: u32,
        /// The cgroup.
        cgroup: std::path::PathBuf,
    },
    /// As many pods as there can be.
    #[error("{} pods are enrolled, and there is no room for more", underpass_ebpf_abi::MAX_PODS)]
    Full,
    /// It cannot be remembered.
    #[error(transparent)]
    State(#[from] StateError),
    /// The kernel side.
    #[error(transparent)]
    Kernel(#[from] underpass_ebpf::Error),
}

/// What a namespace looks like from inside.
struct Inside {
    cookie: u64,
    interfaces: Vec<IpAddr>,
}

/// How an enrolment began.
enum Begun {
    /// It was captured before; nothing has changed.
    Already(u64),
    /// Proxies are told.
    Starting(u64),
}

impl Agent {
    /// Captures a pod, and tells `caller` when it is done.
    pub(super) fn enrol_for(&mut self, caller: Line, uid: &str, place: Place) {
        match self.begin(uid, place) {
            Ok(Begun::Already(cookie)) => {
                let served = self.is_served(cookie);
                if let Some(pod) = self.pods.get(&cookie) {
                    let pod = pod.view(served);
                    caller.answer(&Answer::Enrolled { pod, already: true });
                }
            }
            Ok(Begun::Starting(cookie)) => {
                if let Some(starting) = self.pods.get_mut(&cookie).and_then(|pod| pod.starting.as_mut()) {
                    starting.callers.push(caller);
                }
                if !self.has_active_proxy() {
                    self.conclude(cookie);
                }
            }
            Err(error) => {
                tracing::warn!(uid, %error, "a pod was not enrolled");
                let reason = error.to_string();
                caller.answer(&Answer::Failed { reason });
            }
        }
    }

    /// Captures a pod that the configuration names.
    ///
    /// # Errors
    /// When it cannot be captured.
    pub(super) fn enrol(&mut self, uid: &str, place: Place) -> Result<(), EnrolError> {
        match self.begin(uid, place)? {
            Begun::Already(_) => Ok(()),
            Begun::Starting(cookie) => self.try_conclude(cookie),
        }
    }

    fn begin(&mut self, uid: &str, place: Place) -> Result<Begun, EnrolError> {
        if uid.is_empty() || uid.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(EnrolError::Uid(uid.into()));
        }
        let namespace = Namespace::open(&place)?;
        let inside = look_inside(&namespace, &place)?;
        if let Some(pod) = self.pods.get_mut(&inside.cookie) {
            if pod.record.uid != uid {
                let uid = pod.record.uid.clone();
                return Err(EnrolError::OtherWorkload { place, uid });
            }
            if pod.starting.is_some() {
                return Ok(Begun::Starting(inside.cookie));
            }
            if pod.interfaces == inside.interfaces && pod.record.place == place {
                return Ok(Begun::Already(inside.cookie));
            }
        }
        self.check_uid(uid, inside.cookie)?;
        self.check_cgroups(&namespace)?;
        let cookie = inside.cookie;
        self.insert(uid, place, namespace, inside)?;
        self.introduce(cookie);
        Ok(Begun::Starting(cookie))
    }

    /// Whether no other pod has this uid. One whose namespace is gone has it no more.
    fn check_uid(&mut self, uid: &str, cookie: u64) -> Result<(), EnrolError> {
        let other = self
            .pods
            .values()
            .find(|pod| pod.record.uid == uid && pod.record.cookie != cookie);
        let Some(other) = other else {
            return Ok(());
        };
        if other.namespace.is_at(&other.record.place) {
            return Err(EnrolError::OtherNamespace {
                uid: uid.into(),
                place: other.record.place.clone(),
            });
        }
        let gone = other.record.cookie;
        self.remove(gone, "its network namespace is gone")
            .map_err(EnrolError::Kernel)
    }

    fn check_cgroups(&self, namespace: &Namespace) -> Result<(), EnrolError> {
        let admitted = self.proxies.values().filter_map(|proxy| proxy.admitted.as_ref());
        for cgroup in admitted.map(|admitted| &admitted.cgroup) {
            let inside = |pid: &u32| namespace.is_at(&Place::Pid(*pid));
            if let Some(pid) = cgroups::processes(cgroup).into_iter().find(inside) {
                let cgroup = cgroup.clone();
                return Err(EnrolError::ProxysCgroup { pid, cgroup });
            }
        }
        Ok(())
    }

    /// Makes a pod of a namespace: listeners, a slot, an entry in the state. A pod that is there gets what has changed.
    fn insert(&mut self, uid: &str, place: Place, namespace: Namespace, inside: Inside) -> Result<(), EnrolError> {
        let Inside { cookie, interfaces } = inside;
        let disowned = self.pods.get(&cookie).map(|pod| pod.disowned.clone());
        let disowned = disowned.unwrap_or_default();
        let addresses = self.own_addresses(cookie, &interfaces, &disowned)?;
        let (slot, fresh) = self.slot_of(cookie)?;
        let listeners = self.pods.get(&cookie).and_then(|pod| pod.listeners.as_ref());
        let opened = match listeners.is_some_and(|listeners| listeners.suit(&addresses)) {
            true => None,
            false => Some(open_listeners(&namespace, &addresses, &self.settings.keepalive)),
        };
        let opened = opened.transpose().map_err(|source| NamespaceError::Io {
            place: place.clone(),
            step: "listening in",
            source,
        })?;
        let mut former = self.pods.remove(&cookie);
        let listeners = opened.or_else(|| former.as_mut().and_then(|pod| pod.listeners.take()));
        let namespace = Arc::new(namespace);
        let pod = Pod {
            record: Record {
                uid: uid.into(),
                place,
                identity: namespace.identity(),
                cookie,
                slot,
                since: former.as_ref().map_or_else(now_in_seconds, |pod| pod.record.since),
            },
            namespace,
            addresses,
            interfaces,
            disowned,
            listeners,
            refusing: former.as_ref().is_some_and(|pod| pod.refusing),
            unserved_since: Some(Instant::now()),
            starting: Some(Starting {
                deadline: Instant::now() + READY_PATIENCE,
                callers: Vec::new(),
                fresh,
            }),
        };
        self.services.namespaces.insert(&pod);
        self.pods.insert(cookie, pod);
        if let Err(error) = self.save() {
            if former.is_none() {
                self.pods.remove(&cookie);
                self.services.namespaces.remove(cookie);
                return Err(error.into());
            }
            tracing::error!(uid, %error, "what has changed of a pod is not in the state");
        }
        Ok(())
    }

    /// The slot of a pod, and whether the kernel does not know the pod yet.
    fn slot_of(&self, cookie: u64) -> Result<(u32, bool), EnrolError> {
        let known = self.kernel.pods()?;
        if let Some((_, slot)) = known.iter().find(|(known, _)| *known == cookie) {
            return Ok((*slot, false));
        }
        let mut taken: Vec<u32> = self.pods.values().map(|pod| pod.record.slot).collect();
        taken.extend(known.into_iter().map(|(_, slot)| slot));
        let free = (0..underpass_ebpf_abi::MAX_PODS).find(|slot| !taken.contains(slot));
        free.map(|slot| (slot, true)).ok_or(EnrolError::Full)
    }

    /// Lets the kernel capture a pod whose proxy is ready, or has had the time to be, and tells who asked.
    pub(super) fn conclude(&mut self, cookie: u64) {
        let callers = match self.pods.get_mut(&cookie).and_then(|pod| pod.starting.as_mut()) {
            Some(starting) => std::mem::take(&mut starting.callers),
            None => return,
        };
        let outcome = self.try_conclude(cookie);
        let served = self.is_served(cookie);
        let answer = match (&outcome, self.pods.get(&cookie)) {
            (Ok(()), Some(pod)) => Answer::Enrolled {
                pod: pod.view(served),
                already: false,
            },
            (Err(error), _) => Answer::Failed {
                reason: error.to_string(),
            },
            (Ok(()), None) => return,
        };
        callers.iter().for_each(|caller| caller.answer(&answer));
    }

    fn try_conclude(&mut self, cookie: u64) -> Result<(), EnrolError> {
        let served = self.is_served(cookie);
        let Some(pod) = self.pods.get_mut(&cookie) else {
            return Ok(());
        };
        let fresh = pod.starting.take().is_some_and(|starting| starting.fresh);
        // Until now nobody has waited.
        pod.unserved_since = (!served).then(Instant::now);
        let uid = pod.record.uid.clone();
        let enrolled = self.kernel.enrol(&pod.spec()).and_then(|()| {
            // The kernel remembers that an earlier agent had it refused.
            if fresh {
                Ok(())
            } else {
                self.kernel.set_refusing(cookie, pod.refusing)
            }
        });
        if let Err(error) = enrolled {
            tracing::error!(uid, %error, "a pod was not enrolled");
            // What was enrolled before stays, refused, for its listeners may be gone.
            if fresh {
                let _ = self.remove(cookie, "it could not be enrolled");
            }
            return Err(error.into());
        }
        tracing::info!(uid, cookie, netns = %pod.record.place, addresses = ?pod.addresses, served, "a pod is enrolled");
        if fresh {
            let spared = self.kernel.exempted().unwrap_or_default();
            end_older_connections(pod, &spared);
        }
        Ok(())
    }

    /// Concludes enrolments whose proxy has had the time to be ready.
    pub(super) fn conclude_overdue(&mut self, now: Instant) {
        let overdue = |pod: &&Pod| pod.starting.as_ref().is_some_and(|starting| starting.deadline <= now);
        let cookies: Vec<_> = self
            .pods
            .values()
            .filter(overdue)
            .map(|pod| pod.record.cookie)
            .collect();
        for cookie in cookies {
            tracing::warn!(cookie, "no proxy is ready for the pod yet; its connections wait");
            self.conclude(cookie);
        }
    }

    /// Frees a pod.
    ///
    /// # Errors
    /// When the kernel keeps something of it; it stays enrolled, and refused, then.
    pub(super) fn remove(&mut self, cookie: u64, why: &str) -> Result<(), underpass_ebpf::Error> {
        self.dismiss(cookie);
        let Some(pod) = self.pods.get_mut(&cookie) else {
            return self.kernel.withdraw(cookie);
        };
        pod.listeners = None;
        pod.refusing = true;
        self.kernel.withdraw(cookie)?;
        let pod = self.pods.remove(&cookie);
        self.services.namespaces.remove(cookie);
        if let Err(error) = self.save() {
            tracing::error!(%error, "a removed pod is still in the state");
        }
        let Some(pod) = pod else { return Ok(()) };
        tracing::info!(uid = pod.record.uid, cookie, why, "a pod is no longer enrolled");
        let reason = format!("workload {} was removed: {why}", pod.record.uid);
        for caller in pod.starting.into_iter().flat_map(|starting| starting.callers) {
            let reason = reason.clone();
            caller.answer(&Answer::Failed { reason });
        }
        Ok(())
    }

    /// Frees the pods that are meant; their uids. None is no error: they are free then.
    ///
    /// # Errors
    /// When the kernel keeps something.
    pub(super) fn remove_named(&mut self, which: &Which) -> Result<Vec<String>, EnrolError> {
        let cookies: Vec<u64> = match which {
            Which::Uid(uid) => {
                let meant = self.pods.values().filter(|pod| pod.record.uid == *uid);
                meant.map(|pod| pod.record.cookie).collect()
            }
            Which::Place(place) => {
                let by_place = |pod: &&Pod| pod.record.place == *place || pod.namespace.is_at(place);
                self.pods
                    .values()
                    .filter(by_place)
                    .map(|pod| pod.record.cookie)
                    .collect()
            }
        };
        let mut uids = Vec::new();
        for cookie in cookies {
            uids.extend(self.pods.get(&cookie).map(|pod| pod.record.uid.clone()));
            self.remove(cookie, "as asked")?;
        }
        Ok(uids)
    }

    /// Removes the pods whose namespaces are gone.
    pub(super) fn look_at_namespaces(&mut self) {
        let gone = |pod: &&Pod| !pod.namespace.is_at(&pod.record.place);
        let cookies: Vec<_> = self.pods.values().filter(gone).map(|pod| pod.record.cookie).collect();
        for cookie in cookies {
            if let Err(error) = self.remove(cookie, "its network namespace is gone") {
                tracing::error!(cookie, %error, "a pod that is gone could not be removed");
            }
        }
    }

    /// Opens a pod's listeners anew and leads the kernel there.
    pub(super) fn reopen(&mut self, cookie: u64) {
        let keepalive = self.settings.keepalive;
        let Some(pod) = self.pods.get_mut(&cookie).filter(|pod| pod.listeners.is_none()) else {
            return;
        };
        let uid = pod.record.uid.clone();
        match open_listeners(&pod.namespace, &pod.addresses, &keepalive) {
            Ok(listeners) => pod.listeners = Some(listeners),
            Err(error) => return tracing::error!(uid, %error, "the pod has no listeners and stays refused"),
        }
        if let Err(error) = self.kernel.enrol(&pod.spec()) {
            tracing::error!(uid, %error, "the pod's listeners are unknown to the kernel; it stays refused");
            pod.listeners = None;
        }
    }

    /// Takes up a pod of an earlier agent, if it is still there.
    pub(super) fn restore(&mut self, record: Record) {
        let (uid, cookie) = (record.uid.clone(), record.cookie);
        let opened = Namespace::open(&record.place).and_then(|namespace| {
            let inside = look_inside(&namespace, &record.place)?;
            Ok((namespace, inside))
        });
        let outcome = match opened {
            Ok((namespace, inside)) if namespace.identity() == record.identity && inside.cookie == cookie => {
                self.insert(&uid, record.place, namespace, inside).and_then(|()| {
                    // The state has the time of now until it is written next; it only informs.
                    if let Some(pod) = self.pods.get_mut(&cookie) {
                        pod.record.since = record.since;
                    }
                    self.try_conclude(cookie)
                })
            }
            _ => {
                tracing::info!(uid, netns = %record.place, "a pod ended while there was no agent");
                self.kernel.withdraw(cookie).map_err(EnrolError::Kernel)
            }
        };
        if let Err(error) = outcome {
            tracing::error!(uid, %error, "a pod of the last agent could not be taken up; it stays refused");
        }
    }

    /// Writes the state.
    pub(super) fn save(&self) -> Result<(), StateError> {
        self.state
            .save(self.pods.values().map(|pod| pod.record.clone()).collect())
    }
}

fn look_inside(namespace: &Namespace, place: &Place) -> Result<Inside, NamespaceError> {
    let inside = namespace.enter(|| {
        interfaces::bring_loopback_up()?;
        let socket = socket::tcp_socket(([0, 0, 0, 0], 0).into())?;
        Ok(Inside {
            cookie: underpass_ebpf::netns_cookie(std::os::fd::AsFd::as_fd(&socket))?,
            interfaces: interfaces::addresses()?,
        })
    });
    let inside = inside.map_err(|source| NamespaceError::Io {
        place: place.clone(),
        step: "looking at the interfaces of",
        source,
    })?;
    match inside.interfaces.iter().any(|address| is_bindable(*address)) {
        true => Ok(inside),
        false => Err(NamespaceError::NoAddress(place.clone())),
    }
}

pub(super) fn open_listeners(
    namespace: &Namespace,
    addresses: &[IpAddr],
    keepalive: &underpass_config::Keepalive,
) -> io::Result<Listeners> {
    namespace.enter(|| Listeners::open(addresses, keepalive))
}

fn end_older_connections(pod: &Pod, spared: &[u64]) {
    let uid = &pod.record.uid;
    match pod.namespace.enter(|| connections::end_all(&pod.addresses, spared)) {
        Ok(0) => {}
        Ok(count) => tracing::info!(uid, count, "ended connections of before the enrolment"),
        Err(error) => {
            let advice = "connections of before the enrolment go on past the proxy; restart the pod to end them";
            tracing::warn!(uid, %error, advice);
        }
    }
}

fn now_in_seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs())
}
