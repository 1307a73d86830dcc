//! What users deploy with: the Helm chart, and the manifests that are made of it.
//!
//! Whether its objects give a working waypoint is asked of a real istiod (`istiod`, `waypoint::deployed`); here they are what Kubernetes takes, say
//! what they are to say, and give no more privilege than is meant.

use serde_json::{Value, json};
use underpass_config::{Config, Premises, Role, Surroundings};
use underpass_tests::deploy::{Release, folder, helm, objects};
use underpass_tests::{Need, available};

/// Values with which every part of the chart is rendered, one time or another.
fn variants() -> Vec<Value> {
    vec![
        json!({}),
        json!({"node": {"enabled": true}, "podMonitor": {"enabled": true, "labels": {"release": "prometheus"}}}),
        json!({"waypoint": {"enabled": false}, "node": {"enabled": true, "privileged": false, "kubeletCgroups": ["/sys/fs/cgroup/system.slice/kubelet.service"]}}),
        json!({
            "image": {"repository": "registry.example/mesh/underpass", "tag": "1"},
            "imagePullSecrets": [{"name": "pull"}],
            "istio": {"revision": "canary", "network": "net", "clusterId": "west", "trustDomain": "example.com"},
            "waypoint": {
                "gateway": {"name": "way", "trafficType": "all", "from": "Selector", "selector": {"matchLabels": {"a": "b"}}, "labels": {"c": "d"}, "annotations": {"e": "f"}},
                "service": {"trafficDistribution": "", "internalTrafficPolicy": "Local"},
                "config": {"node": {"log": "debug", "access_log": {"format": "json"}}},
                "env": {"RUST_BACKTRACE": 1},
                "podLabels": {"g": "h"}, "podAnnotations": {"i": "j"}, "affinity": {"nodeAffinity": {}}, "nodeSelector": {"k": "l"},
                "tolerations": [], "priorityClassName": "", "updateStrategy": {"type": "OnDelete", "rollingUpdate": null},
            },
        }),
    ]
}

fn daemon_sets(release: &Release) -> impl Iterator<Item = &Value> {
    release.objects().iter().filter(|object| object["kind"] == "DaemonSet")
}

fn containers(release: &Release) -> impl Iterator<Item = &Value> {
    daemon_sets(release).flat_map(|set| {
        set["spec"]["template"]["spec"]["containers"]
            .as_array()
            .expect("containers")
    })
}

#[test]
fn the_chart_is_well_formed() {
    if !available(&[Need::Deployment]) {
        return;
    }
    let chart = folder().join("helm/underpass");
    let lint = helm(&[
        "lint",
        "--strict",
        "--kube-version",
        "1.34.0",
        &chart.display().to_string(),
    ]);
    assert!(lint.status.success(), "{}", String::from_utf8_lossy(&lint.stdout));
}

/// Mutant: a misspelled field in a template (`terminationGracePeriod`) is refused by the decoder.
#[test]
fn objects_are_what_their_kinds_are_declared_to_be() {
    if !available(&[Need::Deployment]) {
        return;
    }
    for kubernetes in ["1.30.0", "1.34.0"] {
        for values in variants() {
            let rendered = Release::try_install("underpass", "mesh", kubernetes, &values);
            let release = rendered.unwrap_or_else(|problem| panic!("{values} on {kubernetes}: {problem}"));
            for object in release.objects() {
                assert_eq!(object["metadata"]["namespace"], "mesh", "{object}");
                assert!(
                    object["metadata"]["labels"]["app.kubernetes.io/instance"] == "underpass",
                    "{object}"
                );
            }
        }
    }
    let misspelled = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": {"port": []}});
    let problem = objects(&misspelled.to_string()).expect_err("no such field");
    assert!(problem.contains("unknown field \"spec.port\""), "{problem}");
}

#[test]
fn a_value_that_is_not_known_is_refused() {
    if !available(&[Need::Deployment]) {
        return;
    }
    for (values, what) in [
        (json!({"waypont": {}}), "waypont"),
        (
            json!({"waypoint": {"drain": {"announceSeconds": "5s"}}}),
            "announceSeconds",
        ),
        (
            json!({"waypoint": {"service": {"trafficDistribution": "PreferSameRack"}}}),
            "trafficDistribution",
        ),
        (json!({"istio": {"address": "https://istiod:15012"}}), "address"),
    ] {
        let refused = Release::try_install("underpass", "mesh", "1.34.0", &values);
        let Err(problem) = refused else {
            panic!("{values} is taken")
        };
        assert!(problem.contains(what), "{values}: {problem}");
    }
}

/// The files that the proxies get are valid, alone and with what users add, in the environment that the chart gives.
#[test]
fn the_configuration_is_valid_for_its_role() {
    if !available(&[Need::Deployment]) {
        return;
    }
    for values in variants() {
        let release = Release::install("underpass", "mesh", &values);
        let files = release.objects().iter().filter(|object| object["kind"] == "ConfigMap");
        for file in files {
            let role = match file["metadata"]["labels"]["app.kubernetes.io/component"].as_str() {
                Some("waypoint") => Role::Waypoint,
                _ => Role::Node,
            };
            let surroundings = Surroundings::read(|name| (name == "SERVICE_ACCOUNT").then(|| "way".to_owned()));
            // The file says by itself what it is for.
            let premises = Premises {
                role: Role::Standalone,
                surroundings,
            };
            let yaml = file["data"]["config.yaml"].as_str().expect("a file");
            let config = Config::from_yaml_given(yaml, &premises).unwrap_or_else(|error| panic!("{yaml}{error}"));
            assert_eq!(config.node.role, role, "{yaml}");
        }
    }
    let release = Release::install("underpass", "mesh", &variants()[3]);
    let yaml = release.object("ConfigMap", "way")["data"]["config.yaml"]
        .as_str()
        .expect("a file");
    assert!(
        yaml.contains("drain: 30s") && yaml.contains("log: debug"),
        "both the chart's and the user's: {yaml}"
    );
}

#[test]
fn who_carries_traffic_has_no_privilege_and_nobody_may_ask_the_api_server() {
    if !available(&[Need::Deployment]) {
        return;
    }
    for values in variants() {
        let release = Release::install("underpass", "mesh", &values);
        for container in containers(&release).filter(|container| container["name"] != "agent") {
            let context = &container["securityContext"];
            assert_eq!(context["runAsNonRoot"], true);
            assert_eq!(context["allowPrivilegeEscalation"], false);
            assert_eq!(context["readOnlyRootFilesystem"], true);
            assert_eq!(context["capabilities"], json!({"drop": ["ALL"]}));
            assert_eq!(context["seccompProfile"]["type"], "RuntimeDefault");
        }
        for set in daemon_sets(&release) {
            let spec = &set["spec"]["template"]["spec"];
            assert_eq!(spec["automountServiceAccountToken"], false);
            assert!(spec.get("hostNetwork").is_none());
            let shares_processes = set["metadata"]["labels"]["app.kubernetes.io/component"] == "node";
            assert_eq!(spec.get("hostPID").is_some(), shares_processes);
        }
        let kinds = release
            .objects()
            .iter()
            .map(|object| object["kind"].as_str().expect("a kind"));
        let unexpected: Vec<_> = kinds.filter(|kind| kind.contains("Role")).collect();
        assert!(
            unexpected.is_empty(),
            "nothing is asked of the API server: {unexpected:?}"
        );
    }
}

/// An instance has time to be announced as leaving and to drain before it is killed, and is replaced before it leaves.
#[test]
fn an_instance_leaves_in_order() {
    if !available(&[Need::Deployment]) {
        return;
    }
    let values = json!({"waypoint": {"drain": {"announceSeconds": 7, "connectionsSeconds": 120}}});
    let release = Release::install("underpass", "mesh", &values);
    let set = release.object("DaemonSet", "underpass");
    let spec = &set["spec"]["template"]["spec"];
    assert_eq!(spec["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"], 7);
    let yaml = release.object("ConfigMap", "underpass")["data"]["config.yaml"]
        .as_str()
        .expect("a file");
    assert!(yaml.contains("drain: 120s"), "{yaml}");
    assert!(spec["terminationGracePeriodSeconds"].as_u64() > Some(127), "{spec}");
    assert_eq!(
        set["spec"]["updateStrategy"]["rollingUpdate"],
        json!({"maxSurge": 1, "maxUnavailable": 0})
    );
    assert_eq!(
        spec["containers"][0]["readinessProbe"]["httpGet"]["path"],
        "/healthz/ready"
    );
}

#[test]
fn clients_are_led_to_their_own_node_as_their_kubernetes_can_say_it() {
    if !available(&[Need::Deployment]) {
        return;
    }
    let on = |kubernetes| {
        let release = Release::try_install("underpass", "mesh", kubernetes, &json!({})).expect("rendered");
        release.object("Service", "underpass").clone()
    };
    let (old, new) = (on("1.33.0"), on("1.34.0"));
    assert_eq!(new["spec"]["trafficDistribution"], "PreferSameNode");
    assert!(
        old["spec"].get("trafficDistribution").is_none(),
        "an older API server refuses it"
    );
    assert_eq!(
        old["metadata"]["annotations"]["networking.istio.io/traffic-distribution"],
        "PreferSameNode"
    );
    assert_eq!(new["spec"]["ports"][0]["appProtocol"], "hbone");
}

/// `deploy/manifests` is what the chart renders. Mutant: an edited manifest.
#[test]
fn the_manifests_are_what_the_chart_renders() {
    if !available(&[Need::Deployment]) {
        return;
    }
    let script = folder().join("manifests.sh");
    let output = std::process::Command::new(script)
        .arg("--check")
        .output()
        .expect("the script runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for manifest in ["waypoint.yaml", "node.yaml"] {
        let text = std::fs::read_to_string(folder().join("manifests").join(manifest)).expect("a manifest");
        assert!(objects(&text).is_ok_and(|objects| objects.len() > 3), "{manifest}");
    }
}
