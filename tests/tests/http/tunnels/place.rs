//! A proxy between a client and the three kinds of endpoints.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::runtime::Runtime;
use underpass_tests::{Host, Proxy, World, wait};

use super::endpoint::{self, Flag, Saw};

/// Whatever takes longer hangs.
const DEADLINE: Duration = Duration::from_secs(60);

pub(super) struct Place {
    pub(super) runtime: Runtime,
    pub(super) client: Host,
    pub(super) at: SocketAddr,
    proxy: Proxy,
    endpoints: Vec<Receiver<Saw>>,
    cue: Arc<Flag>,
    yaml: String,
    denied: String,
    world: World,
}

impl Place {
    /// `forward` is added to what each route does.
    pub(super) fn start(forward: &str) -> Self {
        Self::start_with(forward, "")
    }

    /// And `cluster` to what is said of each cluster.
    pub(super) fn start_with(forward: &str, cluster: &str) -> Self {
        let world = World::loopback();
        let (client, us, host) = (world.host(), world.host(), world.host());
        let runtime = Runtime::new().expect("a runtime");
        let listeners = [9001, 9002, 9003].map(|port| host.listen(port));
        let addresses: Vec<SocketAddr> = (listeners.iter())
            .map(|listener| listener.local_addr().expect("a socket"))
            .collect();
        let [one, two, three] = listeners;
        let cue = Arc::<Flag>::default();
        let endpoints = vec![
            endpoint::http1(one, false, &cue),
            endpoint::http2(runtime.handle(), two),
            endpoint::http1(three, true, &cue),
        ];
        let at = us.at(8080);
        let yaml = yaml(&world, at, us.at(15000), &addresses, forward, cluster);
        let file = world.directory().join("http.yaml");
        std::fs::write(&file, &yaml).expect("write the configuration");
        let denied = format!(
            "workloads: [{{name: one, namespace: shop, addresses: ['{}'], authorization_policies: [shop/no]}}]
authorization_policies:
- {{name: no, namespace: shop, scope: WORKLOAD_SELECTOR, action: DENY, groups: [{{rules: [{{matches: [{{source_ips: [{}]}}]}}]}}]}}
",
            host.ip(),
            client.ip()
        );
        Self {
            proxy: Proxy::start_with_file(&world, &us, file),
            runtime,
            client,
            at,
            endpoints,
            cue,
            yaml,
            denied,
            world,
        }
    }

    /// How its endpoint saw the tunnel end.
    pub(super) fn endpoint_saw(&self) -> Saw {
        wait::some(wait::SOON, "the endpoint sees the tunnel's end", || {
            self.endpoints.iter().find_map(|told| told.try_recv().ok())
        })
    }

    /// Has its endpoint say its last words, and waits until it has gone.
    pub(super) fn endpoint_breaks_off(&self) {
        self.cue.set();
        assert_eq!(self.endpoint_saw(), Saw::Broken);
    }

    /// The log's line of its one request.
    pub(super) fn line(&self) -> String {
        let log = self.world.directory().join("access.log");
        wait::some(wait::SOON, "the tunnel is logged", || {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            text.lines().find(|line| line.contains("bytes_sent")).map(str::to_owned)
        })
    }

    /// Has a policy deny the client its endpoint.
    pub(super) fn deny(&self) {
        self.proxy.replace_file(&(self.yaml.clone() + &self.denied));
    }

    /// Bytes of tunnels, as the metrics have them.
    pub(super) fn tunneled(&self, direction: &str) -> u64 {
        let metrics = self.proxy.metrics();
        metrics.sum("underpass_http_tunnel_bytes_total", &[("direction", direction)])
    }

    /// Has the proxy do nothing while `something` is done.
    pub(super) fn while_stopped(&self, something: impl FnOnce()) {
        let pid = Pid::from_raw(self.proxy.pid().try_into().expect("a process"));
        kill(pid, Signal::SIGSTOP).expect("it runs");
        something();
        kill(pid, Signal::SIGCONT).expect("it is there");
    }

    pub(super) fn drain(&self) {
        self.proxy.request("POST", "/drain");
    }

    pub(super) fn run<T>(&self, test: impl Future<Output = T>) -> T {
        let in_time = async { tokio::time::timeout(DEADLINE, test).await };
        self.runtime.block_on(in_time).expect("it does not hang")
    }
}

fn yaml(
    world: &World,
    at: SocketAddr,
    admin: SocketAddr,
    endpoints: &[SocketAddr],
    forward: &str,
    cluster: &str,
) -> String {
    let log = world.directory().join("access.log").display().to_string();
    let (h1, h2, tcp) = (endpoints[0], endpoints[1], endpoints[2]);
    format!(
        "node:
  name: a
  admin: '{admin}'
  timeouts: {{drain: 2s}}
  access_log: {{path: '{log}', format: json}}
  listeners: [{{name: http, address: '{at}', protocol: http, routes: t}}]
http:
  clusters: [{{{cluster}name: h1, endpoints: ['{h1}']}}, {{{cluster}name: h2, protocol: http2, endpoints: ['{h2}']}}, {{{cluster}name: tcp, endpoints: ['{tcp}']}}]
  routes:
  - name: t
    virtual_hosts:
    - name: web
      domains: [web.test]
      routes:
      - {{match: {{connect: true}}, forward: {{{forward}cluster: tcp, connect: tcp}}}}
      - {{match: {{prefix: /h1}}, forward: {{{forward}cluster: h1, upgrades: [websocket]}}}}
      - {{match: {{prefix: /h2}}, forward: {{{forward}cluster: h2, upgrades: [websocket]}}}}
      - {{forward: {{cluster: h1}}}}
"
    )
}
