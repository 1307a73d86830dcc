//! Pods are enrolled, listed and removed while everything runs, by whom it concerns and by nobody else.

use std::fs;
use std::io::Read;
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::signal::Signal;
use underpass_tests::capture::{CaptureNode, Pod, cgroup2_mount};
use underpass_tests::{Config, Host, Need, Proxy, Server, available, is_reset, wait};

use crate::place::{Hosts, ONLY_CLIENT, PORT, Place, ask, is_refusal, node};

/// Neither root nor the proxies' user.
const SOMEBODY: u32 = 65_533;

#[test]
fn a_pod_is_named_by_a_path_or_by_a_process() {
    let Some(place) = Place::start(|hosts| hosts.config("")) else {
        return;
    };
    let (pod, server) = (&place.stranger, Server::start(&place.remote, PORT));
    let uid = pod.uid();
    place
        .proxy
        .apply(&place.config("").workload_at(pod.name(), &pod.addresses(), ""));
    let pid = pod.pid().to_string();
    let by_pid = place.node.underpass(&["enrol", "--pid", &pid, "--uid", &uid]);
    assert!(by_pid.status.success(), "{by_pid:?}");
    let source = ask(pod, server.address()).expect("served").local_addr().expect("open");
    assert_eq!(place.proxy.access_line(source).field("src.workload"), "stranger");
    let listed = place.node.pods();
    let entry = listed
        .iter()
        .find(|entry| entry["uid"] == uid.as_str())
        .expect("it is listed");
    let addresses: Vec<&str> = entry["addresses"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|ip| ip.as_str())
        .collect();
    for ip in pod.addresses() {
        assert!(addresses.contains(&ip.to_string().as_str()), "{ip} in {entry}");
    }
    place.node.remove(pod);
    assert_eq!(place.node.pods().len(), 3);
    place.node.enrol(pod);
    let by_path = place
        .node
        .underpass(&["remove", "--netns", &pod.path().display().to_string()]);
    assert!(by_path.status.success(), "{by_path:?}");
    assert_eq!(place.node.pods().len(), 3);
}

#[test]
fn what_is_done_twice_is_done_once_and_what_contradicts_is_refused() {
    let Some(place) = Place::start(|hosts| hosts.config("")) else {
        return;
    };
    let server = Server::start(&place.server, PORT);
    let mut open = ask(&place.client, server.address()).expect("served");
    let (pins, descriptors) = (place.node.pins(), place.agent.descriptors());
    for _ in 0..3 {
        place.node.enrol(&place.client);
    }
    assert_eq!((place.node.pins(), place.agent.descriptors()), (pins, descriptors));
    Server::echo(&mut open, b"undisturbed").expect("an open connection does not notice");
    let other = place.node.try_enrol(place.client.path(), &place.stranger.uid());
    assert!(
        !other.status.success() && other.stderr.contains("remove"),
        "it names the remedy: {other:?}"
    );
    Server::echo(&mut open, b"undisturbed").expect("nor a mistake");
    for (path, problem) in [
        ("/nowhere", "does not exist"),
        ("/etc/hostname", "not a network namespace"),
    ] {
        let wrong = place.node.try_enrol(Path::new(path), &place.client.uid());
        assert!(!wrong.status.success() && wrong.stderr.contains(problem), "{wrong:?}");
    }
    let nobody = place.node.underpass(&["remove", "--uid", &place.stranger.uid()]);
    assert_eq!(place.node.pods().len(), 3, "{nobody:?}");
}

#[test]
fn a_removed_pod_is_free_and_what_was_held_in_it_ends() {
    let Some(place) = Place::start(|hosts| hosts.config("")) else {
        return;
    };
    let [server, remote] = [&*place.server, &place.remote].map(|host| Server::start(host, PORT));
    let open = |host: &Host, to: &Server| ask(host, to.address()).expect("allowed");
    let (outbound, inbound) = (open(&place.other, &remote), open(&place.stranger, &server));
    let mut goes_on = open(&place.client, &server);

    place.node.remove(&place.other);
    assert_ends(outbound);
    let mut free = open(&place.other, &remote);
    assert_eq!(
        remote.arrivals().last().expect("one").accepted_from,
        free.local_addr().expect("open")
    );

    place.node.remove(&place.server);
    assert_ends(inbound);
    let unguarded = open(&place.stranger, &server);
    let own = unguarded.local_addr().expect("open");
    assert_eq!(server.arrivals().last().expect("one").accepted_from, own);
    // What its clients' side holds is judged there, and goes on; what was free is not concerned.
    Server::echo(&mut goes_on, b"still judged").expect("the client is captured as ever");
    Server::echo(&mut free, b"still free").expect("an echo");

    // To a guarded server the removed client is a stranger.
    place.node.enrol(&place.server);
    place
        .proxy
        .apply(&place.config("shop/rule").policy("shop/rule", ONLY_CLIENT));
    place.assert_refused(&place.other, server.address());
    ask(&place.client, server.address()).expect("allowed");
}

#[track_caller]
fn assert_ends(mut stream: TcpStream) {
    stream.set_read_timeout(Some(wait::soon())).expect("SO_RCVTIMEO");
    let end = stream.read(&mut [0]).expect_err("a reset");
    assert!(is_reset(&end), "{end}");
}

#[test]
fn bpffs_is_mounted_by_the_agent_where_nobody_has() {
    if !available(&[Need::Capture]) {
        return;
    }
    let node = CaptureNode::without_bpffs();
    let hosts = Hosts::new(&node);
    let _agent = node.start_agent();
    let _proxy = node.start_proxy(&hosts.config(""));
    node.enrol(&hosts.client);
    let server = Server::start(&hosts.remote, PORT);
    ask(&hosts.client, server.address()).expect("served");
    assert!(!node.pins().is_empty());
    let detached = node.detach();
    assert!(detached.status.success(), "{detached:?}");
    assert!(node.pins().is_empty());
}

#[test]
fn the_agent_talks_to_root_and_to_its_proxies_only() {
    let Some(place) = Place::start(|hosts| hosts.config("")) else {
        return;
    };
    let server = Server::start(&place.remote, PORT);
    for user in [65_534, SOMEBODY] {
        let outcome = place.node.underpass_as(user, &["pods"]);
        assert!(!outcome.status.success(), "user {user}: {outcome:?}");
        let uid = place.client.uid();
        let outcome = place.node.underpass_as(user, &["remove", "--uid", &uid]);
        assert!(!outcome.status.success(), "user {user}: {outcome:?}");
    }
    assert_eq!(place.node.pods().len(), 3);
    // Who isn't a proxy does not become one: it gets no connection, and the proxy in charge stays.
    let stranger = place.node.launch_proxy_as(SOMEBODY, "stranger", &place.config(""));
    assert_rejected(&place, stranger, &server);
    let uncovered = place.node.launch_proxy_as(65_534, "", &place.config(""));
    assert_rejected(&place, uncovered, &server);
    let beside_a_pod = place
        .node
        .launch_proxy_as(65_534, "pods/shop-client/main", &place.config(""));
    assert_rejected(&place, beside_a_pod, &server);
    // What is beside it in the cgroup is not exempt either.
    ask(&place.client, server.address()).expect("served as before");
    place.proxy.request("GET", "/ready");
}

/// A proxy that the agent doesn't work with never gets ready, and says why; the other one serves.
#[track_caller]
fn assert_rejected(place: &Place, rejected: Proxy, server: &Server) {
    wait::eventually(wait::SOON, "it says that it can't talk to the agent", || {
        rejected.log().contains("agent")
    });
    for _ in 0..10 {
        let source = ask(&place.client, server.address())
            .expect("served")
            .local_addr()
            .expect("open");
        place.proxy.access_line(source).assert_reason("completed", "-");
    }
    let ready = rejected.try_request("GET", "/ready");
    assert!(!ready.is_ok_and(|answer| answer.status == 200), "{}", rejected.log());
    assert_eq!(place.node.proxies().len(), 1);
}

#[test]
fn run_with_a_capture_section_is_agent_and_proxy_in_one() {
    let Some(node) = node() else { return };
    let hosts = Hosts::new(&node);
    let captured = |pod: &Pod| {
        format!(
            "{{netns: {:?}, workload: {:?}}}",
            pod.path().display().to_string(),
            pod.name()
        )
    };
    let capture = format!(
        "cgroup: {:?}, run_dir: {:?}, pin_dir: {:?}, proxy_user: nobody, pods: [{}, {}, {}]",
        node.cgroup("").display().to_string(),
        node.run_directory().display().to_string(),
        node.pin_directory().display().to_string(),
        captured(&hosts.client),
        captured(&hosts.other),
        captured(&hosts.server),
    );
    let config: Config = hosts
        .config("shop/rule")
        .policy("shop/rule", ONLY_CLIENT)
        .capture(&capture);
    let mut both = node.start_both(&config);
    let server = Server::start(&hosts.server, PORT);
    ask(&hosts.client, server.address()).expect("allowed");
    for host in [&*hosts.other, &hosts.stranger] {
        let refused = ask(host, server.address()).expect_err("denied");
        assert!(is_refusal(&refused), "{refused}");
    }
    let proxies = node.proxies();
    let proxy = &proxies[0];
    let (pid, cgroup) = (
        proxy["pid"].as_u64().expect("a pid"),
        proxy["cgroup"].as_str().expect("a path").to_owned(),
    );
    assert_ne!(pid, u64::from(both.pid()), "the proxy is a process of its own");
    let owner = fs::metadata(format!("/proc/{pid}")).expect("it runs").uid();
    assert_eq!(owner, 65_534, "an ordinary user");
    assert!(Path::new(&cgroup).starts_with(cgroup2_mount().expect("a mount")));
    // Killed, it comes back by itself.
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), Signal::SIGKILL).expect("kill the proxy");
    wait::eventually(wait::SOON, "there is another proxy", || {
        node.proxies().iter().any(|proxy| proxy["pid"].as_u64() != Some(pid))
    });
    wait::eventually(wait::SOON, "it serves", || ask(&hosts.client, server.address()).is_ok());
    let refused = ask(&hosts.other, server.address()).expect_err("denied still");
    assert!(is_refusal(&refused), "{refused}");
    let ended = both.terminate(wait::SOON);
    assert!(ended.success(), "{ended}\n{}", both.log());
    // Without `keep` the end of both is the end of capture.
    assert_eq!(node.pins(), Vec::<String>::new());
    ask(&hosts.other, server.address()).expect("free");
    assert!(!Path::new(&cgroup).exists(), "{cgroup} is removed");
}
