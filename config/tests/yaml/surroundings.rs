//! What the environment of a pod says, and what comes of it beside what the file says.

use std::sync::Arc;

use underpass_config::{Config, IstiodSettings, NodeSettings, Premises, Role, Surroundings, WaypointSettings};

/// A pod's environment, as a DaemonSet gives it.
fn surroundings() -> Surroundings {
    let variables = [
        ("NODE_NAME", "worker-1"),
        ("CLUSTER_ID", "west"),
        ("NETWORK", "net"),
        ("TRUST_DOMAIN", "example.com"),
        ("XDS_ADDRESS", "istiod-a.mesh.svc:15012"),
        ("POD_NAME", "way-x"),
        ("POD_NAMESPACE", "mesh"),
        ("POD_IP", "10.0.0.9"),
        ("SERVICE_ACCOUNT", "way"),
        ("GATEWAY", "gate"),
    ];
    let value = |name: &str| {
        variables
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, value)| (*value).to_owned())
    };
    Surroundings::read(value)
}

fn given(yaml: &str, role: Role) -> Arc<NodeSettings> {
    let premises = Premises {
        role,
        surroundings: surroundings(),
    };
    Config::from_yaml_given(yaml, &premises)
        .unwrap_or_else(|error| panic!("{error}"))
        .node
}

#[test]
fn a_pods_environment_says_what_its_file_does_not() {
    let node = given("node: {}", Role::Waypoint);
    let istiod = IstiodSettings {
        address: "istiod-a.mesh.svc:15012".parse().unwrap(),
        pod: "way-x".into(),
        namespace: "mesh".into(),
        pod_ip: "10.0.0.9".parse().unwrap(),
        service_account: Some("way".into()),
        waypoint: Some(WaypointSettings {
            gateway: "gate".into(),
            ..WaypointSettings::default()
        }),
        ..IstiodSettings::default()
    };
    assert_eq!(node.istiod, Some(istiod.clone()));
    assert_eq!(
        (&*node.name, &*node.cluster_id, &*node.network),
        ("worker-1", "west", "net")
    );
    assert_eq!(
        node.own_identity().unwrap().to_string(),
        "spiffe://example.com/ns/mesh/sa/way"
    );
    // A node is told by istiod if it is told of one, and is no waypoint for that.
    let node = given("node: {}", Role::Node);
    assert_eq!(
        node.istiod,
        Some(IstiodSettings {
            waypoint: None,
            ..istiod
        })
    );
}

#[test]
fn a_file_overrides_its_pods_environment() {
    let yaml = "
node:
  name: local
  cluster_id: east
  network: other
  identities: {trust_domain: file.example}
  istiod: {address: \"istiod:1\", pod: p, namespace: n, pod_ip: 10.0.0.1, service_account: s, waypoint: {gateway: g}}
";
    let node = given(yaml, Role::Waypoint);
    assert_eq!(
        node,
        Config::from_yaml_given(
            yaml,
            &Premises {
                role: Role::Waypoint,
                ..Premises::default()
            }
        )
        .unwrap()
        .node
    );
    assert_eq!(&*node.istiod.as_ref().unwrap().waypoint.as_ref().unwrap().gateway, "g");
    assert_eq!(&*node.name, "local");
}

/// A shell may have any of these names in its environment.
#[test]
fn a_standalone_proxys_environment_says_nothing() {
    assert_eq!(
        given("node: {}", Role::Standalone),
        Config::from_yaml("node: {}").unwrap().node
    );
    // The file has the last word on the role.
    assert_eq!(given("node: {role: standalone}", Role::Waypoint).istiod, None);
    let by_file = given("node: {role: waypoint}", Role::Standalone);
    assert_eq!(&*by_file.istiod.as_ref().unwrap().pod, "way-x");
}

/// An update of the file is read on the same premises as its first version.
#[test]
fn an_update_keeps_what_the_environment_says() {
    let premises = Premises {
        role: Role::Waypoint,
        surroundings: surroundings(),
    };
    let before = Config::from_yaml_given("node: {}", &premises).unwrap();
    let (after, _) = before.updated_given("node: {log: debug}", &premises).unwrap();
    assert_eq!(after.node.istiod, before.node.istiod);
    assert_eq!(&*after.node.log, "debug");
}

/// The file has a mesh, and the environment an istiod: who reads what is wrong has not written `node.istiod`.
#[test]
fn a_mesh_beside_an_istiod_of_the_environment_is_refused() {
    let premises = Premises {
        role: Role::Node,
        surroundings: surroundings(),
    };
    let error = Config::from_yaml_given("workloads: [{name: a, namespace: b}]", &premises).unwrap_err();
    let problems = error.problems();
    assert_eq!((problems.len(), problems[0].path.as_str()), (1, "workloads"));
    assert!(
        problems[0].remedy.contains("unset XDS_ADDRESS"),
        "{}",
        problems[0].remedy
    );
}

/// They are said together with what is wrong in the file, and where they do not count they are not said.
#[test]
fn variables_that_make_no_sense_are_problems_of_the_configurations_that_they_stand_behind() {
    let bad = |name: &str| match name {
        "POD_IP" => Some("10.0.0.0/8".to_owned()),
        "SERVICE_ACCOUNT" => Some("way".to_owned()),
        _ => None,
    };
    let given = |role| Premises {
        role,
        surroundings: Surroundings::read(bad),
    };
    let error = Config::from_yaml_given("node: {workers: none}", &given(Role::Waypoint)).unwrap_err();
    let paths: Vec<_> = error.problems().iter().map(|problem| problem.path.as_str()).collect();
    assert_eq!(paths, ["POD_IP", "node.workers"]);
    assert!(Config::from_yaml_given("node: {}", &given(Role::Standalone)).is_ok());
}
