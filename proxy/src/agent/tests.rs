//! The agent with a recorder in the kernel's place. Namespaces are real, and need root.

use std::fs::{self, File};
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use underpass_config::Premises;
use underpass_ebpf::{Detached, Error, PodSpec};

use super::cgroups::Hierarchy;
use super::control::{Answer, ControlError, Line, PodState, PodView, Request, Which};
use super::joining::TierOrReason;
use super::kernel::Kernel;
use super::namespace::Place;
use super::supervisor::Supervisor;
use super::takeover::Claim;
use super::{Agent, End, Event, Settings, doors};
use crate::configuration::Origin;
use crate::run::Given;

/// What the kernel was told, in order, and the pods that it would capture.
#[derive(Default)]
struct Record {
    told: Vec<String>,
    pods: Vec<(u64, u32)>,
    exempted: Vec<u64>,
    refuses_to_enrol: bool,
}

#[derive(Clone)]
struct Recorder {
    record: Arc<Mutex<Record>>,
    map: Arc<File>,
}

impl Recorder {
    fn new() -> Self {
        Self {
            record: Arc::default(),
            map: Arc::new(File::open("/dev/null").unwrap()),
        }
    }

    fn told(&self) -> Vec<String> {
        self.record.lock().unwrap().told.clone()
    }

    fn tell(&self, what: String) {
        self.record.lock().unwrap().told.push(what);
    }
}

impl Kernel for Recorder {
    fn exempt(&self, cgroup: u64) -> Result<(), Error> {
        self.record.lock().unwrap().exempted.push(cgroup);
        Ok(())
    }

    fn unexempt(&self, cgroup: u64) -> Result<(), Error> {
        self.record.lock().unwrap().exempted.retain(|known| *known != cgroup);
        Ok(())
    }

    fn exempted(&self) -> Result<Vec<u64>, Error> {
        Ok(self.record.lock().unwrap().exempted.clone())
    }

    fn trust_probes_of(&self, _: u64) -> Result<(), Error> {
        Ok(())
    }

    fn enrol(&self, pod: &PodSpec<'_>) -> Result<(), Error> {
        let mut record = self.record.lock().unwrap();
        if record.refuses_to_enrol {
            return Err(Error::UnknownPod { cookie: pod.cookie });
        }
        record.told.push(format!("enrol {} {:?}", pod.slot, pod.v4));
        record.pods.retain(|(cookie, _)| *cookie != pod.cookie);
        record.pods.push((pod.cookie, pod.slot));
        Ok(())
    }

    fn set_refusing(&self, _: u64, refusing: bool) -> Result<(), Error> {
        self.tell(format!("refusing {refusing}"));
        Ok(())
    }

    fn withdraw(&self, cookie: u64) -> Result<(), Error> {
        self.tell("withdraw".to_owned());
        self.record.lock().unwrap().pods.retain(|(known, _)| *known != cookie);
        Ok(())
    }

    fn pods(&self) -> Result<Vec<(u64, u32)>, Error> {
        Ok(self.record.lock().unwrap().pods.clone())
    }

    fn owner(&self, _: IpAddr) -> Result<Option<u64>, Error> {
        Ok(None)
    }

    fn maps(&self) -> [BorrowedFd<'_>; 2] {
        [self.map.as_fd(), self.map.as_fd()]
    }

    fn tier(&self) -> TierOrReason {
        Err("not in this test".to_owned())
    }

    fn sweep(&self) -> Result<(), Error> {
        Ok(())
    }

    fn detach(&self) -> Result<Detached, Error> {
        self.tell("detach".to_owned());
        Ok(Detached::default())
    }
}

/// A network namespace that lives as long as its thread.
struct Pod {
    path: PathBuf,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Pod {
    fn new(address: &str) -> Self {
        let (stop, stopped) = channel::<()>();
        let (ready, is_ready) = channel();
        let address = address.to_owned();
        let thread = thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let commands = format!(
                "link add d0 type veth peer d1\naddress add {address} dev d0\nlink set d0 up\nlink set d1 up\n"
            );
            let file = tempfile::NamedTempFile::new().unwrap();
            fs::write(&file, commands).unwrap();
            let output = Command::new("ip").arg("-batch").arg(file.path()).output().unwrap();
            assert!(output.status.success(), "{output:?}");
            let path = fs::read_link("/proc/thread-self").unwrap();
            ready.send(Path::new("/proc").join(path).join("ns/net")).unwrap();
            let _ = stopped.recv();
        });
        let path = is_ready.recv().unwrap();
        Self {
            path,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    fn place(&self) -> Place {
        Place::Netns(self.path.clone())
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.stop.take();
        let _ = self.thread.take().unwrap().join();
    }
}

/// An agent on a thread of its own.
struct Running {
    run_dir: tempfile::TempDir,
    kernel: Recorder,
    events: Sender<Event>,
    thread: Option<JoinHandle<End>>,
}

impl Running {
    fn start(run_dir: tempfile::TempDir, kernel: Recorder) -> Self {
        Self::start_as(run_dir, kernel, false)
    }

    fn start_as(run_dir: tempfile::TempDir, kernel: Recorder, as_run: bool) -> Self {
        let settings = Settings {
            run_dir: run_dir.path().into(),
            hierarchy: Hierarchy::at("/nowhere".into()),
            attach: "/nowhere".into(),
            own_cgroup: 1,
            proxy_uid: None,
            refuse_after: Duration::from_millis(300),
            keepalive: underpass_config::Keepalive::default(),
        };
        let claim = Claim::Free(doors::lock(run_dir.path()).unwrap().unwrap());
        let mut agent = Agent::new(settings, Box::new(kernel.clone()), claim).unwrap();
        if as_run {
            let mut supervisor = Supervisor::new(
                Given {
                    admin: None,
                    origin: Origin::File("/c.yaml".into()),
                    premises: Premises::default(),
                },
                "/a.sock".into(),
                "root".into(),
                false,
            );
            supervisor.never_start();
            agent.supervisor = Some(supervisor);
        }
        let events = agent.sender.clone();
        let thread = Some(thread::spawn(move || agent.serve().unwrap()));
        Self {
            run_dir,
            kernel,
            events,
            thread,
        }
    }

    fn enrol(&self, uid: &str, place: Place) -> Result<(PodView, bool), ControlError> {
        let uid = uid.to_owned();
        let line = Line::call(self.run_dir.path(), &Request::Enrol { uid, place })?;
        match line.listen()?.0 {
            Answer::Enrolled { pod, already } => Ok((pod, already)),
            other => panic!("{other:?}"),
        }
    }

    fn enrol_fails(&self, uid: &str, place: Place, why: &str) {
        let error = self.enrol(uid, place).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }

    fn pods(&self) -> Vec<PodView> {
        let line = Line::call(self.run_dir.path(), &Request::Pods).unwrap();
        std::iter::from_fn(|| match line.listen().unwrap().0 {
            Answer::Pod(pod) => Some(pod),
            Answer::End => None,
            other => panic!("{other:?}"),
        })
        .collect()
    }

    fn remove(&self, uid: &str) -> Vec<String> {
        let which = Which::Uid(uid.to_owned());
        let line = Line::call(self.run_dir.path(), &Request::Remove(which)).unwrap();
        match line.listen().unwrap().0 {
            Answer::Removed { uids } => uids,
            other => panic!("{other:?}"),
        }
    }

    fn stop(mut self) -> (tempfile::TempDir, Recorder) {
        self.events.send(Event::Signalled(Signal::SIGTERM)).unwrap();
        assert_eq!(self.thread.take().unwrap().join().unwrap(), End::Stopped);
        (self.run_dir, self.kernel)
    }
}

fn running() -> Running {
    Running::start(tempfile::tempdir().unwrap(), Recorder::new())
}

fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Whether this test can run; see CONTRIBUTING.
fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    assert!(root || std::env::var_os("CI").is_none(), "this test needs root");
    if !root {
        eprintln!("SKIP: needs root");
    }
    root
}

#[test]
fn enrolling_listing_and_removing_can_be_repeated() {
    if !is_root() {
        return;
    }
    let (agent, pod) = (running(), Pod::new("10.9.0.1/24"));
    let (view, already) = agent.enrol("shop/web", pod.place()).unwrap();
    assert!(!already);
    assert_eq!(view.addresses[0], "10.9.0.1".parse::<IpAddr>().unwrap());
    assert_eq!(view.outbound, ["10.9.0.1:15001".parse().unwrap()]);
    let (again, already) = agent.enrol("shop/web", pod.place()).unwrap();
    assert!(already);
    assert_eq!((again.cookie, &again.inbound), (view.cookie, &view.inbound));
    assert_eq!(agent.pods().len(), 1);
    assert_eq!(agent.remove("shop/web"), ["shop/web"]);
    assert_eq!(agent.remove("shop/web"), [] as [String; 0]);
    assert_eq!(agent.pods(), []);
    let told = agent.kernel.told();
    let (first, rest) = told.split_first().unwrap();
    assert_eq!(first, "enrol 0 Some((10.9.0.1, 15001))");
    assert_eq!(rest.last().unwrap(), "withdraw");
    agent.stop();
}

#[test]
fn what_is_no_pod_is_refused_with_a_remedy() {
    if !is_root() {
        return;
    }
    let agent = running();
    let (one, other) = (Pod::new("10.9.0.1/24"), Pod::new("10.9.0.2/24"));
    agent.enrol("shop/web", one.place()).unwrap();
    let netns = |path: &str| Place::Netns(path.into());
    agent.enrol_fails("shop/x", netns("/run/netns/no-such"), "does not exist");
    agent.enrol_fails("shop/x", netns("/etc/passwd"), "not a network namespace");
    agent.enrol_fails("shop/x", netns("/proc/self/ns/uts"), "not a network namespace");
    agent.enrol_fails("shop/x", netns("/proc/self/ns/net"), "node's own network namespace");
    agent.enrol_fails("shop/x", Place::Pid(4_194_303), "there is no process 4194303");
    agent.enrol_fails("two words", other.place(), "no workload uid");
    agent.enrol_fails("shop/x", one.place(), "free it first: underpass remove --uid shop/web");
    agent.enrol_fails(
        "shop/web",
        other.place(),
        "free it first: underpass remove --uid shop/web",
    );
    // Its devices have link-local IPv6 addresses at most, and no listener can be at those.
    let bare = Pod::new("127.0.0.9/8");
    agent.enrol_fails("shop/x", bare.place(), "no address but loopback");
    assert_eq!(agent.pods().len(), 1);
    agent.stop();
}

#[test]
fn a_pod_that_vanishes_is_removed_by_itself() {
    if !is_root() {
        return;
    }
    let (agent, pod) = (running(), Pod::new("10.9.0.1/24"));
    agent.enrol("shop/web", pod.place()).unwrap();
    let since = Instant::now();
    drop(pod);
    eventually("the pod is removed", || agent.pods().is_empty());
    assert!(since.elapsed() < Duration::from_secs(3), "{:?}", since.elapsed());
    assert_eq!(agent.kernel.told().last().unwrap(), "withdraw");
    agent.stop();
}

#[test]
fn a_uid_whose_namespace_is_gone_is_free_at_once() {
    if !is_root() {
        return;
    }
    let (agent, pod) = (running(), Pod::new("10.9.0.1/24"));
    agent.enrol("shop/web", pod.place()).unwrap();
    drop(pod);
    let next = Pod::new("10.9.0.2/24");
    agent.enrol("shop/web", next.place()).unwrap();
    agent.stop();
}

#[test]
fn a_pod_without_a_proxy_is_refused_after_a_while() {
    if !is_root() {
        return;
    }
    let (agent, pod) = (running(), Pod::new("10.9.0.1/24"));
    let (view, _) = agent.enrol("shop/web", pod.place()).unwrap();
    assert_eq!(view.state, PodState::Waiting);
    eventually("the pod is refused", || agent.pods()[0].state == PodState::Refused);
    assert_eq!(agent.pods()[0].outbound, []);
    assert_eq!(agent.kernel.told().last().unwrap(), "refusing true");
    agent.stop();
}

#[test]
fn a_pod_that_the_kernel_does_not_take_leaves_nothing_behind() {
    if !is_root() {
        return;
    }
    let (agent, pod) = (running(), Pod::new("10.9.0.1/24"));
    agent.kernel.record.lock().unwrap().refuses_to_enrol = true;
    agent.enrol_fails("shop/web", pod.place(), "is not enrolled");
    assert_eq!(agent.pods(), []);
    agent.kernel.record.lock().unwrap().refuses_to_enrol = false;
    let (view, already) = agent.enrol("shop/web", pod.place()).unwrap();
    assert!(!already);
    assert_eq!(view.outbound[0].port(), 15001);
    agent.stop();
}

#[test]
fn a_new_agent_takes_up_the_pods_of_the_last_one_that_are_still_there() {
    if !is_root() {
        return;
    }
    let agent = running();
    let (stays, goes) = (Pod::new("10.9.0.1/24"), Pod::new("10.9.0.2/24"));
    let (before, _) = agent.enrol("shop/stays", stays.place()).unwrap();
    agent.enrol("shop/goes", goes.place()).unwrap();
    let (run_dir, kernel) = agent.stop();
    drop(goes);
    let agent = Running::start(run_dir, kernel);
    let pods = agent.pods();
    assert_eq!(pods.len(), 1);
    assert_eq!((pods[0].cookie, &pods[0].since), (before.cookie, &before.since));
    assert_eq!(agent.kernel.record.lock().unwrap().pods.len(), 1);
    agent.stop();
}

#[test]
fn an_address_that_is_new_is_taken_up_by_enrolling_again() {
    if !is_root() {
        return;
    }
    let (agent, pod) = (running(), Pod::new("10.9.0.1/24"));
    agent.enrol("shop/web", pod.place()).unwrap();
    let net = format!("--net={}", pod.path.display());
    let add = ["ip", "address", "add", "10.9.0.7/24", "dev", "d0"];
    assert!(Command::new("nsenter").arg(net).args(add).status().unwrap().success());
    let (view, already) = agent.enrol("shop/web", pod.place()).unwrap();
    assert!(
        !already && view.addresses.contains(&"10.9.0.7".parse().unwrap()),
        "{view:?}"
    );
    agent.stop();
}

#[test]
fn a_second_agent_is_not_let_in_by_one_that_belongs_to_run() {
    let agent = Running::start_as(tempfile::tempdir().unwrap(), Recorder::new(), true);
    let Err(refused) = Claim::stake(agent.run_dir.path(), true) else {
        panic!("took over")
    };
    let told = refused.to_string();
    assert!(told.contains("belongs to `underpass run`"), "{told}");
    let Err(refused) = Claim::stake(agent.run_dir.path(), false) else {
        panic!("took over")
    };
    assert!(refused.to_string().contains("starts its own"), "{refused}");
}

#[test]
fn a_takeover_that_is_broken_off_leaves_the_old_agent_at_work() {
    if !is_root() {
        return;
    }
    let (agent, pod) = (running(), Pod::new("10.9.0.1/24"));
    agent.enrol("shop/web", pod.place()).unwrap();
    let Ok(Claim::Inherited(inheritance)) = Claim::stake(agent.run_dir.path(), true) else {
        panic!("nothing was handed over")
    };
    drop(inheritance);
    assert_eq!(agent.pods().len(), 1);
    agent.stop();
}

#[test]
fn a_path_that_is_too_long_for_a_socket_says_so() {
    let run_dir = PathBuf::from(format!("/tmp/{}", "x".repeat(120)));
    let error = Line::call(&run_dir, &Request::Pods).unwrap_err().to_string();
    assert!(error.contains("shorter --run-dir"), "{error}");
    let error = Line::call(Path::new("/nowhere/at/all"), &Request::Pods)
        .unwrap_err()
        .to_string();
    assert!(error.contains("start one: underpass agent"), "{error}");
}
