//! What a client says of itself and of what it asked for, in the fields of its CONNECT; for the labels of metrics and nothing else.
//!
//! `baggage` (the W3C's format, Istio's keys) names the client's workload, which a node of another cluster, or behind a gateway, can't find by its
//! address; `forwarded` (RFC 7239) names in `host` the service that was asked for. ztunnel reads both so (`inbound.rs` there), and Envoy's filter of Istio knows
//! more keys (`metadata_object.cc` of istio/proxy: `app.name`, `app.version`, `k8s.instance.name`). Neither is proved by anything:
//!
//! * Policy never sees it. The namespace and the principal are the certificate's.
//! * What the mesh knows stands before what is said, and a service is believed that the pod is an endpoint of.
//! * Each description becomes series of metrics that stay, so that there are limits on their size and number: a peer that tells another story with
//!   each stream is, beyond them, `unknown`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use http::HeaderMap;
use underpass_config::{Config, Identity, Text, WorkloadType};

use super::connect::{BAGGAGE, FORWARDED, WORKLOADS};
use super::host::Host;

/// The longest value: names of Kubernetes are shorter.
const LONGEST: usize = 253;

/// Descriptions of one identity: revisions and clusters of a service account's workloads.
const OF_ONE: usize = 64;

/// Descriptions of all.
const OF_ALL: usize = 4096;

/// What a client says. What it does not say is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Described {
    /// Its workload (a deployment's name, for example).
    pub workload: Text,
    /// Its canonical service.
    pub canonical_name: Text,
    /// The version of that.
    pub canonical_revision: Text,
    /// Its application, where that is not the canonical service.
    pub app: Text,
    /// The version of that.
    pub app_version: Text,
    /// Its own name, usually the pod's.
    pub name: Text,
    /// What kind of thing its workload is.
    pub workload_type: Option<WorkloadType>,
    /// Where it runs.
    pub region: Text,
    /// A part of that.
    pub zone: Text,
    /// Its cluster.
    pub cluster: Text,
    /// The service that it asked for.
    pub service: Option<DescribedService>,
}

impl Described {
    /// Its application: the canonical service, where it says nothing else.
    pub fn app(&self) -> &Text {
        one_of(&self.app, &self.canonical_name)
    }

    /// The version of that.
    pub fn app_version(&self) -> &Text {
        one_of(&self.app_version, &self.canonical_revision)
    }
}

fn one_of<'t>(first: &'t Text, second: &'t Text) -> &'t Text {
    if first.is_empty() { second } else { first }
}

/// A service of the mesh.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DescribedService {
    /// Its host name.
    pub hostname: Text,
    /// Its namespace.
    pub namespace: Text,
    /// Its name.
    pub name: Text,
}

/// The descriptions that were given to a node.
#[derive(Debug, Default)]
pub struct Descriptions(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    by_identity: HashMap<Identity, Vec<Arc<Described>>>,
    count: usize,
}

impl Descriptions {
    /// What the request of `peer` to `host` says; nothing if it says nothing, or if too much has been said.
    pub fn of(&self, fields: &HeaderMap, peer: &Identity, host: &Host, config: &Config) -> Option<Arc<Described>> {
        let mut described = baggage(fields, peer);
        described.service = service(fields, host, config);
        (described != Described::default()).then(|| self.keep(peer, described))?
    }

    fn keep(&self, peer: &Identity, described: Described) -> Option<Arc<Described>> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Known { by_identity, count } = &mut *known;
        let of_peer = by_identity.get(peer).map_or(&[][..], |of_peer| of_peer);
        if let Some(same) = of_peer.iter().find(|one| ***one == described) {
            return Some(same.clone());
        }
        if of_peer.len() >= OF_ONE || *count >= OF_ALL {
            return None;
        }
        let described = Arc::new(described);
        by_identity.entry(peer.clone()).or_default().push(described.clone());
        *count += 1;
        Some(described)
    }
}

/// Nothing of one who says that it is of another namespace than its certificate is.
fn baggage(fields: &HeaderMap, peer: &Identity) -> Described {
    let mut described = Described::default();
    for field in fields.get_all(BAGGAGE) {
        let members = field.to_str().unwrap_or_default().split(',');
        for (key, value) in members.filter_map(member) {
            let place = match key {
                "k8s.namespace.name" if *value != *peer.namespace => return Described::default(),
                "k8s.cluster.name" => &mut described.cluster,
                "k8s.instance.name" => &mut described.name,
                "service.name" => &mut described.canonical_name,
                "service.version" => &mut described.canonical_revision,
                "app.name" => &mut described.app,
                "app.version" => &mut described.app_version,
                "cloud.region" => &mut described.region,
                "cloud.availability_zone" => &mut described.zone,
                _ => match WORKLOADS.into_iter().find(|(name, _)| *name == key) {
                    Some((_, kind)) => {
                        described.workload_type = Some(kind);
                        &mut described.workload
                    }
                    None => continue,
                },
            };
            *place = value.into();
        }
    }
    described
}

/// A member of the list: `key=value`, perhaps with properties, which nobody uses.
fn member(text: &str) -> Option<(&str, &str)> {
    let (key, value) = text.split(';').next()?.split_once('=')?;
    let (key, value) = (key.trim(), value.trim());
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    (!value.is_empty() && value.len() <= LONGEST && value.bytes().all(is_name)).then_some((key, value))
}

fn service(fields: &HeaderMap, at: &Host, config: &Config) -> Option<DescribedService> {
    let forwarded = fields.get(FORWARDED)?.to_str().ok()?;
    // What is added by proxies on the way comes behind.
    let first = forwarded.split(',').next()?;
    let mut pairs = first.split(';').filter_map(|pair| pair.split_once('='));
    let (_, host) = pairs.find(|(key, _)| key.trim().eq_ignore_ascii_case("host"))?;
    let state = config.mesh.service_named(host.trim().trim_matches('"'))?;
    let service = state.service();
    at.is_asked_for(state, config).then(|| DescribedService {
        hostname: service.hostname.clone(),
        namespace: service.namespace.clone(),
        name: service.name.clone(),
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;
    use crate::capture::Pod;

    const MESH: &str = "workloads:\n- {uid: web, name: web-1, namespace: shop, addresses: [10.0.0.1]}\n\
        - {uid: db, name: db-1, namespace: shop, addresses: [10.0.0.2]}\n\
        services:\n- {name: web, namespace: shop, vips: [10.96.0.1], ports: [{port: 80}], endpoints: [shop/web-1]}\n\
        - {name: db, namespace: shop, vips: [10.96.0.2], ports: [{port: 80}], endpoints: [shop/db-1]}\n";

    fn peer() -> Identity {
        "spiffe://cluster.local/ns/shop/sa/client".parse().unwrap()
    }

    fn described(known: &Descriptions, baggage: &str, forwarded: &str) -> Option<Arc<Described>> {
        let mut fields = HeaderMap::new();
        fields.insert(BAGGAGE, HeaderValue::from_str(baggage).unwrap());
        fields.insert(FORWARDED, HeaderValue::from_str(forwarded).unwrap());
        let config = Config::from_yaml(MESH).unwrap();
        let pod = Pod::at_address("web", "10.0.0.1".parse().unwrap());
        known.of(&fields, &peer(), &Host::Pod(Arc::new(pod)), &config)
    }

    #[test]
    fn a_client_says_who_it_is_and_what_it_asked_for() {
        let baggage = "k8s.cluster.name=east, k8s.namespace.name=shop,k8s.deployment.name=client;p=1,service.name=shopper,\
                       service.version=v2,app.name=basket,cloud.region=r1,cloud.availability_zone=z1,k8s.instance.name=client-1,nonsense";
        let forwarded = "for=\"10.0.0.9:4711\";host=web.shop.svc.cluster.local";
        let said = described(&Descriptions::default(), baggage, forwarded).unwrap();
        let names = [
            &said.workload,
            &said.canonical_name,
            &said.canonical_revision,
            &said.cluster,
            &said.name,
        ];
        assert_eq!(
            names.map(|text| &**text),
            ["client", "shopper", "v2", "east", "client-1"]
        );
        let more = [said.app(), said.app_version(), &said.region, &said.zone];
        assert_eq!(more.map(|text| &**text), ["basket", "v2", "r1", "z1"]);
        assert_eq!(said.workload_type, Some(WorkloadType::Deployment));
        assert_eq!(said.service.as_ref().map(|service| &*service.name), Some("web"));
    }

    #[test]
    fn what_can_not_be_is_not_believed() {
        let known = Descriptions::default();
        let other_namespace = "service.name=shopper,k8s.namespace.name=bank";
        assert_eq!(described(&known, other_namespace, "for=x"), None);
        assert_eq!(
            described(&known, "service.name=a\"b,service.version=a b", "for=x"),
            None
        );
        assert_eq!(
            described(&known, &format!("service.name={}", "a".repeat(254)), ""),
            None
        );
        // The pod is no endpoint of it, or there is none.
        for host in ["db.shop.svc.cluster.local", "elsewhere.example"] {
            assert_eq!(described(&known, "", &format!("host={host}")), None);
        }
    }

    #[test]
    fn a_peer_with_ever_new_stories_is_listened_to_for_a_while() {
        let known = Descriptions::default();
        let tell = |number: usize| described(&known, &format!("service.name=s{number}"), "");
        let told = (0..10 * OF_ONE).filter(|number| tell(*number).is_some()).count();
        assert_eq!(told, OF_ONE);
        assert!(tell(0).is_some(), "an old one is known still");
    }

    proptest! {
        #[test]
        fn no_fields_panic(baggage in "[ -~]{0,80}", forwarded in "[ -~]{0,80}") {
            described(&Descriptions::default(), &baggage, &forwarded);
        }
    }
}
