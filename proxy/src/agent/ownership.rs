//! Whose address it is.
//!
//! A pod may give itself any address that it likes (CAP_NET_ADMIN in its own namespace), and what is sent to another's must not be taken for
//! its own. The mesh knows whose an address is, and its word, which the proxies bring, decides: an address that it gives to another workload is
//! not the pod's, however early the pod had it. Of an address that no word is about, the first pod that has it keeps it.

use std::net::IpAddr;

use super::Agent;
use super::enrolment::open_listeners;
use super::pods::Pod;

impl Agent {
    /// The addresses of `interfaces` that are the pod's own.
    pub(super) fn own_addresses(
        &mut self,
        cookie: u64,
        interfaces: &[IpAddr],
        disowned: &[IpAddr],
    ) -> Result<Vec<IpAddr>, underpass_ebpf::Error> {
        let mut own = Vec::new();
        for address in interfaces.iter().filter(|address| !disowned.contains(address)) {
            let lives = |pod: &&Pod| pod.namespace.is_at(&pod.record.place);
            match self.kernel.owner(*address)?.filter(|owner| *owner != cookie) {
                None => own.push(*address),
                Some(owner) if self.pods.get(&owner).filter(|pod| !lives(pod)).is_some() => {
                    self.remove(owner, "its network namespace is gone")?;
                    own.push(*address);
                }
                Some(owner) => {
                    tracing::warn!(%address, cookie, owner, "an address of this pod belongs to another pod, and is left to that one");
                }
            }
        }
        Ok(own)
    }

    /// Takes the mesh's word for which of a pod's addresses are another workload's.
    pub(super) fn disown(&mut self, cookie: u64, addresses: Vec<IpAddr>) {
        let Some(pod) = self.pods.get_mut(&cookie).filter(|pod| pod.disowned != addresses) else {
            return;
        };
        let uid = &pod.record.uid;
        tracing::warn!(
            uid,
            cookie,
            ?addresses,
            "these addresses of the pod are another workload's in the mesh"
        );
        pod.disowned = addresses;
        // An address is given up by one pod before another takes it.
        for is_gain in [false, true] {
            for cookie in self.pods.keys().copied().collect::<Vec<_>>() {
                self.settle(cookie, is_gain);
            }
        }
    }

    /// Gives a pod the addresses that are its own now, if it gains any, or if it does not.
    fn settle(&mut self, cookie: u64, is_gain: bool) {
        let Some(pod) = self.pods.get(&cookie) else { return };
        let (interfaces, disowned) = (pod.interfaces.clone(), pod.disowned.clone());
        let own = match self.own_addresses(cookie, &interfaces, &disowned) {
            Ok(own) => own,
            Err(error) => return tracing::error!(cookie, %error, "whose addresses they are cannot be looked up"),
        };
        let keepalive = self.settings.keepalive;
        let Some(pod) = self.pods.get_mut(&cookie).filter(|pod| pod.addresses != own) else {
            return;
        };
        if own.iter().any(|address| !pod.addresses.contains(address)) != is_gain {
            return;
        }
        let uid = pod.record.uid.clone();
        if !pod.listeners.as_ref().is_some_and(|listeners| listeners.suit(&own)) {
            match open_listeners(&pod.namespace, &own, &keepalive) {
                Ok(listeners) => pod.listeners = Some(listeners),
                Err(error) => return tracing::error!(uid, %error, "the pod cannot listen at its own addresses"),
            }
        }
        tracing::info!(uid, cookie, addresses = ?own, "the addresses of a pod were settled anew");
        pod.addresses = own;
        self.services.namespaces.insert(pod);
        // The kernel hears of one that is starting when it has started.
        if pod.starting.is_none()
            && let Err(error) = self.kernel.enrol(&pod.spec())
        {
            tracing::error!(uid, %error, "the kernel does not know the pod's own addresses");
        }
        self.introduce(cookie);
    }
}
