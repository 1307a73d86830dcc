//! The Helm chart of `deploy/helm`, rendered, and its objects as a cluster would complete them.
//!
//! One idea: **nothing of a deployment is written twice.** Objects for istiod, what the containers are started with and their configuration are
//! those of the chart; only what Kubernetes itself adds (the pods of a DaemonSet, addresses, a Gateway's status) is filled in here. Every object is
//! decoded as its kind is declared (`tests/deploy`), so that a field that does not exist is found wherever a test renders the chart.

use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use crate::proxy::Proxy;
use crate::requirement::folder_of;
use crate::world::{Host, World};

/// The Kubernetes that charts are rendered for unless a test says another.
pub const KUBERNETES: &str = "1.34.0";
/// Where the chart's containers find their configuration.
const CONFIG_FOLDER: &str = "/etc/underpass/";

/// The folder with Helm and the program that decodes objects, if `scripts/deploy-setup.sh` has built them.
pub(crate) fn programs() -> Option<PathBuf> {
    let folder = folder_of("deploy-setup.sh")?;
    folder.join("objects").is_file().then_some(folder)
}

/// The folder `deploy` of this repository.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

/// What `helm ARGUMENTS` answers.
pub fn helm(arguments: &[&str]) -> Output {
    let program = programs()
        .expect("a test that needs Helm says so (Need::Deployment)")
        .join("helm");
    Command::new(program).args(arguments).output().expect("helm runs")
}

/// The objects of a YAML text, each decoded as its kind is declared; or what is wrong with one.
///
/// # Errors
/// With what the decoder says.
pub fn objects(yaml: &str) -> Result<Vec<Value>, String> {
    let program = programs()
        .expect("a test that needs the decoder says so (Need::Deployment)")
        .join("objects");
    let mut command = Command::new(program);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("the decoder starts");
    let mut input = child.stdin.take().expect("piped");
    // It may end before it has read all.
    let _ = input.write_all(yaml.as_bytes());
    drop(input);
    let output = child.wait_with_output().expect("the decoder ends");
    match output.status.success() {
        true => Ok(serde_json::from_slice(&output.stdout).expect("a list of objects")),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// The chart as it is installed under a name.
pub struct Release {
    objects: Vec<Value>,
}

/// A pod of a DaemonSet, on a node.
pub struct Placed<'a> {
    /// Its name.
    pub name: &'a str,
    /// The node's name.
    pub node: &'a str,
    /// Its address.
    pub ip: IpAddr,
}

impl Release {
    /// The chart with these values, in a namespace. Panics when Helm or the decoder refuses it.
    pub fn install(name: &str, namespace: &str, values: &Value) -> Self {
        Self::try_install(name, namespace, KUBERNETES, values).unwrap_or_else(|problem| panic!("{values}: {problem}"))
    }

    /// As [`Release::install`], on this version of Kubernetes.
    ///
    /// # Errors
    /// With what Helm or the decoder says.
    pub fn try_install(name: &str, namespace: &str, kubernetes: &str, values: &Value) -> Result<Self, String> {
        let mut file = tempfile::NamedTempFile::new().expect("a file for values");
        write!(file, "{values}").expect("write the values");
        let (chart, values) = (folder().join("helm/underpass"), file.path().display().to_string());
        let chart = chart.display().to_string();
        let output = helm(&[
            "template",
            name,
            &chart,
            "--namespace",
            namespace,
            "--kube-version",
            kubernetes,
            "--values",
            &values,
        ]);
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        let objects = objects(&String::from_utf8_lossy(&output.stdout))?;
        Ok(Self { objects })
    }

    /// Its objects.
    pub fn objects(&self) -> &[Value] {
        &self.objects
    }

    /// Its only object of a kind and name. Panics when there is none.
    #[track_caller]
    pub fn object(&self, kind: &str, name: &str) -> &Value {
        let mut found = self
            .objects
            .iter()
            .filter(|object| object["kind"] == kind && object["metadata"]["name"] == name);
        match (found.next(), found.next()) {
            (Some(object), None) => object,
            (first, _) => panic!("{} {kind} {name}", if first.is_some() { "more than one" } else { "no" }),
        }
    }

    /// What istiod sees of it in a cluster: the objects, with what Kubernetes and istiod's own controllers fill in; `service_ip` is the address of its
    /// only Service, `pods` are those of the DaemonSet `name`.
    pub fn in_cluster(&self, name: &str, service_ip: IpAddr, pods: &[Placed<'_>]) -> String {
        let mut objects = vec![json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass", "metadata": {"name": "istio-waypoint"},
            "spec": {"controllerName": "istio.io/mesh-controller"},
        })];
        for object in &self.objects {
            let mut object = object.clone();
            match object["kind"].as_str() {
                // Neither istiod nor its stand-in for Kubernetes looks at these; pods stand for them.
                Some("DaemonSet" | "ConfigMap") => continue,
                Some("Service") => {
                    object["spec"]["clusterIP"] = json!(service_ip);
                    object["spec"]["clusterIPs"] = json!([service_ip]);
                }
                Some("Gateway") => {
                    let programmed = json!({"type": "Programmed", "status": "True", "reason": "Programmed", "message": "ok", "lastTransitionTime": "2026-01-01T00:00:00Z"});
                    object["status"] = json!({"addresses": object["spec"]["addresses"], "conditions": [programmed]});
                }
                _ => {}
            }
            objects.push(object);
        }
        objects.extend(pods.iter().map(|pod| self.pod(name, pod)));
        objects.iter().map(|object| format!("---\n{object}\n")).collect()
    }

    /// A pod as the DaemonSet's controller makes it, and the kubelet reports it.
    fn pod(&self, name: &str, placed: &Placed<'_>) -> Value {
        let daemon_set = self.object("DaemonSet", name);
        let mut pod = daemon_set["spec"]["template"].clone();
        pod["apiVersion"] = json!("v1");
        pod["kind"] = json!("Pod");
        pod["metadata"]["name"] = json!(placed.name);
        pod["metadata"]["namespace"] = daemon_set["metadata"]["namespace"].clone();
        pod["metadata"]["ownerReferences"] =
            json!([{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": name, "uid": name, "controller": true}]);
        pod["spec"]["nodeName"] = json!(placed.node);
        pod["status"] = json!({"podIP": placed.ip, "conditions": [{"type": "Ready", "status": "True"}]});
        pod
    }

    /// Starts the only container of a pod of the DaemonSet `name` on its host, as the kubelet would: with its arguments, its environment and the file of
    /// its ConfigMap. What is at fixed places in a container (its token, istiod's roots, the admin server) the values have to say.
    pub fn start(&self, world: &World, host: &Host, name: &str, placed: &Placed<'_>) -> Proxy {
        let pod = self.pod(name, placed);
        let container = &pod["spec"]["containers"][0];
        let config = self.object("ConfigMap", name)["data"]["config.yaml"]
            .as_str()
            .expect("a file");
        let folder = world.directory().join(placed.name);
        std::fs::create_dir_all(&folder).expect("a folder for the configuration");
        let file = folder.join("config.yaml");
        std::fs::write(&file, config).expect("write the configuration");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let arguments = container["args"].as_array().expect("arguments").iter().map(text);
        let arguments: Vec<String> = arguments
            .map(|argument| match argument.strip_prefix(CONFIG_FOLDER) {
                Some(file) => folder.join(file).display().to_string(),
                None => argument,
            })
            .collect();
        let variables = container["env"].as_array().expect("an environment").iter();
        let variables: Vec<(String, String)> = variables
            .map(|variable| (text(&variable["name"]), value_of(variable, &pod)))
            .collect();
        Proxy::start_as(world, host, file, &arguments, &variables)
    }
}

/// What the kubelet puts into a variable.
fn value_of(variable: &Value, pod: &Value) -> String {
    let of_pod = variable["valueFrom"]["fieldRef"]["fieldPath"].as_str();
    let value = match of_pod {
        None => variable.get("value"),
        Some(path) => pod.pointer(&format!("/{}", path.replace('.', "/"))),
    };
    value
        .and_then(Value::as_str)
        .unwrap_or_else(|| panic!("{variable} has no value"))
        .to_owned()
}
