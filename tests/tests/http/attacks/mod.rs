//! Clients that mean harm: what they can't make an endpoint see, and what they can't take from others.
//!
//! * [`strict`]: an endpoint that keeps what arrives, and takes offence at all that two readers could read in two ways.
//! * `smuggling1`, `smuggling2`: requests whose end, or whose addressee, is where another reader would not see it; over HTTP/1.1 and HTTP/2.
//! * `bypass`: requests for what policy denies, in other writings.
//! * `splitting`: endpoints that say more than they were asked.
//! * `floods`, `slow`, `bombs`: what costs little to send and could cost much to hold. A [`siege::Siege`] watches the proxy's memory and a
//!   client that means no harm.

mod bombs;
mod bypass;
mod floods;
pub(crate) mod frames;
mod siege;
mod slow;
mod smuggling1;
mod smuggling2;
mod splitting;
mod strict;

use std::net::SocketAddr;

use underpass_tests::{Host, Proxy, World, wait};

use strict::Strict;

/// A proxy before two endpoints: what is for `web.test` goes to one, what is for `secret.test` to the other.
struct Place {
    proxy: Proxy,
    world: World,
    client: Host,
    at: SocketAddr,
    web: Strict,
    secret: Strict,
}

impl Place {
    fn new() -> Self {
        Self::with_timeouts("drain: 10s")
    }

    /// With these fields of `node.timeouts`.
    fn with_timeouts(timeouts: &str) -> Self {
        Self::with(timeouts, "")
    }

    /// And these of the route table.
    fn with(timeouts: &str, table: &str) -> Self {
        let world = World::loopback();
        let (client, us) = (world.host(), world.host());
        let (web, secret) = (Strict::start(&world.host()), Strict::start(&world.host()));
        let (at, admin) = (us.at(8080), us.at(15000));
        let yaml = format!(
            "node: {{name: a, admin: '{admin}', workers: 1, timeouts: {{{timeouts}}}, access_log: {{path: '{}', format: json}}, listeners: [{{name: http, address: '{at}', protocol: http, routes: t}}]}}
http:
  clusters: [{{name: web, endpoints: ['{}']}}, {{name: secret, endpoints: ['{}']}}]
  routes:
  - name: t
{table}    virtual_hosts:
    - {{name: secret, domains: ['secret.test'], routes: [{{forward: {{cluster: secret}}}}]}}
    - name: web
      domains: ['*']
      routes:
      - {{match: {{path: /denied}}, direct: {{status: 403}}}}
      - {{match: {{regex: '/regex/(a+)+(.*)*!'}}, direct: {{status: 200}}}}
      - {{match: {{path: /said}}, direct: {{status: 200, body: said}}}}
      - {{match: {{path: /hasty}}, forward: {{cluster: web, timeout: 1s}}}}
      - {{match: {{path: /idle}}, forward: {{cluster: web, timeout: 0s, idle_timeout: 1s}}}}
      - {{match: {{prefix: /ws}}, forward: {{cluster: web, upgrades: [websocket]}}}}
      - {{forward: {{cluster: web}}}}
",
            world.directory().join("access.log").display(),
            web.address,
            secret.address
        );
        let file = world.directory().join("http.yaml");
        std::fs::write(&file, yaml).expect("write the configuration");
        Self {
            proxy: Proxy::start_with_file(&world, &us, file),
            world,
            client,
            at,
            web,
            secret,
        }
    }

    /// The log's line of its one request for `path`.
    fn line(&self, path: &str) -> String {
        let log = self.world.directory().join("access.log");
        wait::some(wait::SOON, "the request is logged", || {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            let path = format!("\"path\":\"{path}\"");
            text.lines().find(|line| line.contains(&path)).map(str::to_owned)
        })
    }
}
