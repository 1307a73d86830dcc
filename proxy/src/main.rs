//! The `underpass` command.

use std::error::Error;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use underpass::agent::{self, AgentOptions, ProxyDuties, commands};
use underpass::doctor::Report;
use underpass::run::{Given, NeedsFile, Origin};
use underpass::{clusters, dump, explain, flows, keys, routes, run, status};
use underpass_config::{Premises, Role};
use underpass_ebpf::tier::Variant;

/// Gives memory back after a burst of connections, which the system's allocator does not reliably do.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// A waypoint for the pods of one node.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the proxy until SIGTERM or SIGINT, then drain. With a `capture` section, or in the role `node`: the agent and the proxy.
    #[command(after_help = ENVIRONMENT)]
    Run {
        #[command(flatten)]
        given: GivenArguments,
        /// Serve what `underpass config dump` has written instead of what istiod says now. Without pods to capture.
        #[arg(long)]
        replay: Option<PathBuf>,
    },
    /// What istiod says to the proxy of a configuration.
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// List what of what istiod says to the proxy of a configuration would not be served, or not as it is meant. Fails when there is such.
    #[command(after_help = ENVIRONMENT)]
    Check {
        #[command(flatten)]
        start: StartArguments,
        /// Look at what `underpass config dump` has written instead of asking istiod.
        #[arg(long)]
        replay: Option<PathBuf>,
    },
    /// Check a configuration and say what is wrong with it.
    #[command(after_help = ENVIRONMENT)]
    Validate {
        #[command(flatten)]
        start: StartArguments,
    },
    /// Run the agent, the privileged half: it captures pods and hands their connections to a proxy.
    Agent(Box<AgentArguments>),
    /// Run the proxy alone, for the pods of an agent. It needs no privileges.
    #[command(after_help = ENVIRONMENT)]
    Proxy {
        #[command(flatten)]
        given: GivenArguments,
        /// The agent's socket.
        #[arg(long, default_value = "/run/underpass/agent.sock")]
        agent: PathBuf,
        #[command(flatten)]
        duties: DutyArguments,
    },
    /// Capture a pod: its connections, both ways, go through the proxy from now on.
    Enrol {
        #[command(flatten)]
        place: PlaceArguments,
        /// The workload that the pod is: `uid` in the configuration, by default CLUSTER//Pod/NAMESPACE/NAME.
        #[arg(long)]
        uid: String,
        #[command(flatten)]
        call: CallArguments,
    },
    /// List the captured pods, and the proxies that serve them.
    Pods {
        #[command(flatten)]
        call: CallArguments,
    },
    /// List the open connections of a proxy: where their bytes go, and why they are not in the kernel.
    Flows(AskArguments),
    /// List the routes of HTTP of a proxy: what becomes of which requests, and how many each has had.
    Routes(AskArguments),
    /// List the clusters of HTTP of a proxy: endpoints, their health, connections to them, and how much of each limit is used.
    Clusters(AskArguments),
    /// List the keys by which a proxy verifies tokens: which there are, where they come from, why they do not come.
    Keys(AskArguments),
    /// Say what would become of a connection or request now, step by step, and why: client, waypoint, policies, route, cluster, endpoint, tier.
    Explain {
        /// The client: `NAMESPACE/POD`, or an address.
        from: String,
        /// Where it is going: `HOST:PORT`, or an address and port.
        to: String,
        /// Of a request: its method.
        #[arg(long, default_value = "GET")]
        method: String,
        /// Of a request: its path, with the query.
        #[arg(long, default_value = "/")]
        path: String,
        /// Of a request: a header field, as `NAME:VALUE`; may be repeated. `host` is whom it is for.
        #[arg(long)]
        header: Vec<String>,
        #[command(flatten)]
        asked: AskArguments,
    },
    /// Say how a proxy stands with istiod, what of it was rejected, and which certificates it has for how long.
    Status(AskArguments),
    /// Capture a pod no more; its connections go where they would without a mesh.
    Remove {
        #[command(flatten)]
        which: WhichArguments,
        #[command(flatten)]
        call: CallArguments,
    },
    /// End capture on this node: frees all pods, stops the agent, removes everything from the kernel. Works without an agent too.
    Detach {
        /// Where programs and maps are pinned.
        #[arg(long, default_value = "/sys/fs/bpf/underpass")]
        pin_dir: PathBuf,
        #[command(flatten)]
        call: CallArguments,
    },
    /// Find out what this node can do for capture, by trying, and who else is attached to it. Fails when pods cannot be captured.
    Doctor {
        /// The cgroup at which programs would be attached [default: the root of the hierarchy].
        #[arg(long)]
        cgroup: Option<PathBuf>,
        /// Where programs and maps are pinned.
        #[arg(long, default_value = "/sys/fs/bpf/underpass")]
        pin_dir: PathBuf,
        #[command(flatten)]
        call: CallArguments,
    },
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Write down all that istiod sends now, as one JSON document.
    #[command(after_help = ENVIRONMENT)]
    Dump {
        #[command(flatten)]
        start: StartArguments,
        /// The file that it is written to [default: standard output].
        #[arg(long)]
        output: Option<PathBuf>,
    },
}

#[derive(Args)]
struct AgentArguments {
    /// YAML configuration, for its `capture` section; what is given here as well is taken from here.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Where the agent's sockets and state are [default: /run/underpass].
    #[arg(long)]
    run_dir: Option<PathBuf>,
    /// Where programs and maps are pinned, in a bpf file system [default: /sys/fs/bpf/underpass].
    #[arg(long)]
    pin_dir: Option<PathBuf>,
    /// The cgroup (version 2) at which programs are attached: above the pods and the agent [default: the root of the hierarchy].
    #[arg(long)]
    cgroup: Option<PathBuf>,
    /// A cgroup whose connections to pods are health probes and pass unjudged; may be repeated.
    #[arg(long)]
    kubelet_cgroup: Vec<PathBuf>,
    /// The user of the proxy, if that is not root: a name or a number.
    #[arg(long)]
    proxy_user: Option<String>,
    /// How long connections wait when there is no proxy, before they are refused [default: 10s].
    #[arg(long, value_parser = humantime::parse_duration)]
    refuse_after: Option<Duration>,
    /// Move to a cgroup of its own, even if it is alone in the one that it was started in.
    #[arg(long)]
    own_cgroup: bool,
    /// Move connections to the kernel in this way (plain, verdict), whatever the self-test finds. For tests: on a kernel where it fails,
    /// programs hang or lose bytes.
    #[arg(long, hide = true, value_parser = variant)]
    untested_variant: Option<Variant>,
}

fn variant(name: &str) -> Result<Variant, String> {
    let named = Variant::ALL.into_iter().find(|variant| variant.name() == name);
    named.ok_or_else(|| "there are: plain, verdict".to_owned())
}

impl AgentArguments {
    fn adjust(self, options: &mut AgentOptions) {
        let replace =
            |option: &mut PathBuf, given: Option<PathBuf>| given.into_iter().for_each(|given| *option = given);
        replace(&mut options.run_dir, self.run_dir);
        replace(&mut options.pin_dir, self.pin_dir);
        options.cgroup = self.cgroup.or(options.cgroup.take());
        options.kubelet_cgroups.extend(self.kubelet_cgroup);
        options.proxy_user = self.proxy_user.or(options.proxy_user.take());
        options.refuse_after = self.refuse_after.unwrap_or(options.refuse_after);
        options.own_cgroup = self.own_cgroup;
        options.untested_variant = self.untested_variant;
    }
}

#[derive(Args)]
struct AskArguments {
    /// The proxy's admin server.
    #[arg(long, default_value = "127.0.0.1:15000")]
    admin: SocketAddr,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct GivenArguments {
    /// Admin address, instead of the configured one.
    #[arg(long)]
    admin: Option<SocketAddr>,
    #[command(flatten)]
    start: StartArguments,
}

#[derive(Args)]
struct StartArguments {
    /// YAML configuration; a running proxy watches it, and applies valid changes (to `capture` at the next start). In the roles `node` and `waypoint` there need
    /// be none.
    #[arg(long)]
    config: Option<PathBuf>,
    /// What the proxy is to the mesh, unless the configuration says so: `standalone`, `node` for ztunnel's place and ports, or `waypoint` for what istiod
    /// sends the waypoints of a Gateway.
    #[arg(long, value_parser = role, default_value = "standalone")]
    role: Role,
}

/// What the commands that read a configuration say of the environment.
const ENVIRONMENT: &str = "\
In the roles `node` and `waypoint` these variables, as Kubernetes' downward API fills them, stand where the configuration says nothing:
  NODE_NAME                             node.name
  CLUSTER_ID or ISTIO_META_CLUSTER_ID   node.cluster_id
  NETWORK or ISTIO_META_NETWORK         node.network
  TRUST_DOMAIN                          node.identities.trust_domain
  XDS_ADDRESS or CA_ADDRESS             node.istiod.address
  POD_NAME                              node.istiod.pod
  POD_NAMESPACE                         node.istiod.namespace
  INSTANCE_IP or POD_IP                 node.istiod.pod_ip
  SERVICE_ACCOUNT                       node.istiod.service_account
  GATEWAY                               node.istiod.waypoint.gateway";

fn role(word: &str) -> Result<Role, String> {
    let known = Role::ALL.into_iter().find(|role| role.word() == word);
    known.ok_or_else(|| format!("known: {}", Role::ALL.map(Role::word).join(", ")))
}

impl StartArguments {
    fn read(self) -> Result<(Origin, Premises), NeedsFile> {
        let origin = Origin::named(self.config, self.role)?;
        let premises = Premises {
            role: self.role,
            surroundings: run::surroundings(),
        };
        Ok((origin, premises))
    }
}

impl GivenArguments {
    fn given(self) -> Result<Given, NeedsFile> {
        let (origin, premises) = self.start.read()?;
        Ok(Given {
            admin: self.admin,
            origin,
            premises,
        })
    }
}

#[derive(Args)]
struct DutyArguments {
    /// Move to a cgroup of its own first (needs root).
    #[arg(long)]
    own_cgroup: bool,
    /// Become this user first.
    #[arg(long, hide = true)]
    user: Option<String>,
    /// End with this process, the parent.
    #[arg(long, hide = true)]
    parent: Option<u32>,
}

#[derive(Args)]
struct CallArguments {
    /// Where the agent's sockets and state are.
    #[arg(long, default_value = "/run/underpass")]
    run_dir: PathBuf,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct PlaceArguments {
    /// The pod's network namespace, such as /run/netns/NAME.
    #[arg(long)]
    netns: Option<PathBuf>,
    /// A process of the pod.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pid: Option<u32>,
}

impl PlaceArguments {
    fn place(&self) -> Result<commands::Place, commands::CommandError> {
        match (&self.netns, self.pid) {
            (_, Some(pid)) => Ok(commands::Place::Pid(pid)),
            (netns, None) => commands::Place::absolute(netns.as_deref().unwrap_or("".as_ref())),
        }
    }
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct WhichArguments {
    /// The workload.
    #[arg(long)]
    uid: Option<String>,
    /// The pod's network namespace.
    #[arg(long)]
    netns: Option<PathBuf>,
}

fn carry_out(command: Command) -> Result<(), Box<dyn Error>> {
    match command {
        Command::Run { given, replay } => run::run(given.given()?, replay.as_deref())?,
        Command::Config {
            command: ConfigCommand::Dump { start, output },
        } => {
            let (origin, premises) = start.read()?;
            dump::write(&origin, &premises, output.as_deref())?;
        }
        Command::Check { start, replay } => {
            let (origin, premises) = start.read()?;
            let report = dump::check(&origin, &premises, replay.as_deref())?;
            print!("{report}");
            if !report.is_all_served() {
                return Err("what is listed above is not served as it is meant".into());
            }
        }
        Command::Validate { start } => {
            let (origin, premises) = start.read()?;
            let (_, loaded) = run::load(&origin, &premises)?;
            let (workloads, services) = (loaded.mesh.workloads().count(), loaded.mesh.services().count());
            let mesh = match &loaded.node.istiod {
                None => format!("{workloads} workloads, {services} services"),
                Some(istiod) => format!("the mesh comes from istiod at {}", istiod.address),
            };
            println!("{origin} is valid: {mesh}");
        }
        Command::Agent(mut arguments) => {
            let config = arguments.config.take();
            run::run_agent(config.as_deref(), |options| arguments.adjust(options))?;
        }
        Command::Proxy { given, agent, duties } => {
            agent::become_proxy(&ProxyDuties {
                own_cgroup: duties.own_cgroup,
                user: duties.user,
                parent: duties.parent,
            })?;
            run::run_captured(given.given()?, &agent)?;
        }
        Command::Enrol { place, uid, call } => commands::enrol(&call.run_dir, &uid, place.place()?, call.json)?,
        Command::Pods { call } => commands::pods(&call.run_dir, call.json)?,
        Command::Flows(asked) => flows::show(asked.admin, asked.json)?,
        Command::Routes(asked) => routes::show(asked.admin, asked.json)?,
        Command::Clusters(asked) => clusters::show(asked.admin, asked.json)?,
        Command::Keys(asked) => keys::show(asked.admin, asked.json)?,
        Command::Explain {
            from,
            to,
            method,
            path,
            header,
            asked,
        } => {
            let question = explain::Question {
                from,
                to,
                method,
                path,
                headers: header,
            };
            explain::show(asked.admin, &question, asked.json)?;
        }
        Command::Status(asked) => status::show(asked.admin, asked.json)?,
        Command::Remove { which, call } => {
            let which = commands::which(which.uid, which.netns.as_deref())?;
            commands::remove(&call.run_dir, which, call.json)?;
        }
        Command::Detach { pin_dir, call } => commands::detach(&call.run_dir, &pin_dir, call.json)?,
        Command::Doctor { cgroup, pin_dir, call } => {
            let report = Report::make(cgroup.as_deref(), &pin_dir, &call.run_dir);
            if call.json {
                println!("{}", serde_json::to_string_pretty(&report)?);
            } else {
                println!("{report}");
            }
            if !report.capture {
                return Err("what is marked bad above keeps pods from being captured".into());
            }
        }
    }
    Ok(())
}

fn main() -> ExitCode {
    match carry_out(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("underpass: {error}");
            ExitCode::FAILURE
        }
    }
}
