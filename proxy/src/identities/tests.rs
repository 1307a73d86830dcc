use std::future::pending;

use underpass_certs::{Pending, WorkloadCertificate};
use underpass_config::Config;

use super::*;

/// A source that never answers.
struct Silent;

impl CertificateSource for Silent {
    fn obtain<'a>(&'a self, _identity: &'a Identity) -> Pending<'a, Result<WorkloadCertificate, SourceError>> {
        Box::pin(pending())
    }
}

fn identities() -> Identities {
    let trust = Arc::new(Trust::new(TrustDomains::new("cluster.local", [])));
    let (store, _renewing) = IdentityStore::new(Arc::new(Silent), trust, StoreSettings::default());
    let pods = Arc::default();
    Identities { store, pods }
}

/// `shop/web` and `shop/api` of the accounts `web` and `api`.
fn config(web: &str, api: &str) -> Config {
    let workload = |name: &str, account: &str| match account {
        "" => String::new(),
        account => format!("- {{name: {name}, namespace: shop, uid: {name}, service_account: {account}}}\n"),
    };
    let workloads = workload("web", web) + &workload("api", api);
    Config::from_yaml(&format!("node: {{}}\nworkloads:\n{workloads}")).unwrap()
}

fn uid(name: &str) -> WorkloadUid {
    WorkloadUid::new(name)
}

fn account(identities: &Identities, cookie: u64) -> Option<String> {
    let lease = identities.of_pod(cookie)?;
    Some(lease.slot().identity().service_account.to_string())
}

#[test]
fn a_pod_has_the_identity_that_the_mesh_gives_its_workload() {
    let identities = identities();
    let mut mesh = config("", "api").mesh;
    identities.pod_added(1, &uid("web"), &mesh);
    assert_eq!(account(&identities, 1), None, "the mesh does not know it");
    for (web, expected) in [
        ("web", Some("web")),
        ("other", Some("other")),
        ("", None),
        ("web", Some("web")),
    ] {
        let next = config(web, "api").mesh;
        let changes = match next.workload(&uid("web")) {
            Some(workload) => underpass_config::MeshChange::Workload((**workload).clone()),
            None => underpass_config::MeshChange::RemoveWorkload(uid("web")),
        };
        let touched = mesh.apply([changes]);
        identities.mesh_changes(&touched, &mesh);
        assert_eq!(account(&identities, 1).as_deref(), expected);
    }
    let held = identities.status();
    assert_eq!(held.len(), 1, "what no pod is any longer is given up: {held:?}");
    identities.pod_removed(1);
    assert!(identities.of_pod(1).is_none() && identities.status().is_empty());
}

#[test]
fn pods_of_one_account_share_one_certificate() {
    let identities = identities();
    let mesh = config("same", "same").mesh;
    identities.pod_added(1, &uid("web"), &mesh);
    identities.pod_added(2, &uid("api"), &mesh);
    let held = identities.status();
    assert_eq!((held.len(), held[0].leases), (1, 2));
    identities.pod_removed(1);
    assert_eq!(account(&identities, 2).as_deref(), Some("same"));
    assert_eq!(identities.status()[0].leases, 1);
}

#[test]
fn a_change_that_does_not_concern_a_pod_leaves_its_lease_alone() {
    let identities = identities();
    let mut mesh = config("web", "api").mesh;
    identities.pod_added(1, &uid("web"), &mesh);
    let before = identities.of_pod(1).unwrap();
    let touched = mesh.apply([underpass_config::MeshChange::RemoveWorkload(uid("api"))]);
    identities.mesh_changes(&touched, &mesh);
    assert!(Arc::ptr_eq(&before, &identities.of_pod(1).unwrap()));
}

#[test]
fn without_a_source_there_are_no_identities() {
    assert!(Identities::new(&config("web", "api").node).is_none());
    let istiod = Config::from_yaml("node: {istiod: {}}").unwrap();
    assert!(Identities::new(&istiod.node).is_some());
}
