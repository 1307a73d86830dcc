//! The relay of real connections and a kernel that does what the test says: how a flow is joined, and what it is then.

use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use underpass_ebpf::tier::note;

use super::*;
use crate::flow::FlowFacts;
use crate::handover;
use crate::offload::fake::FakeKernel;
use crate::offload::{
    Agency, Direction as Way, JoinAnswer, JoinOrder, Locality, Near, Offload, Refusal, ToAgent, WhyNot,
};
use crate::source::Source;

/// Nothing here takes as long, but for what does not come.
const SOON: Duration = Duration::from_secs(5);
/// How long something that must not happen is waited for.
const NEVER: Duration = Duration::from_millis(30);

/// One relayed connection, and who could join it.
struct World {
    client: TcpStream,
    server: TcpStream,
    flow: Arc<Flow>,
    relay: JoinHandle<Ending>,
    agent: Agent,
}

impl JoinOrder {
    /// Answers, and closes the sockets as the agent does.
    fn answer(self, answer: JoinAnswer) {
        drop((self.downstream, self.upstream));
        self.answer.send(answer);
    }
}

/// The agent's end.
struct Agent {
    offload: Arc<Offload>,
    wishes: UnboundedReceiver<ToAgent>,
}

fn pair() -> (TcpStream, OwnedFd) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let one = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let other = listener.accept().unwrap().0;
    for socket in [&one, &other] {
        socket.set_nonblocking(true).unwrap();
        socket.set_nodelay(true).unwrap();
    }
    (TcpStream::from_std(one).unwrap(), other.into())
}

impl Agent {
    fn new() -> Self {
        let (to_agent, wishes) = unbounded_channel();
        let offload = Arc::new(Offload::default());
        offload.set_agency(Agency::Joins {
            agent: to_agent,
            blind: None,
        });
        Self { offload, wishes }
    }

    /// The next wish, once the flow is held.
    async fn asked(&mut self) -> JoinOrder {
        match tokio::time::timeout(SOON, self.wishes.recv()).await {
            Ok(Some(ToAgent::Join(order))) => order,
            other => panic!("not asked to join: {other:?}"),
        }
    }

    /// What of the flow comes to the agent while `client` says one thing after the other.
    async fn asked_while_talking(&mut self, client: &mut TcpStream) -> JoinOrder {
        let start = Instant::now();
        loop {
            client.write_all(b"x").await.unwrap();
            if let Ok(Some(ToAgent::Join(order))) = tokio::time::timeout(NEVER / 4, self.wishes.recv()).await {
                return order;
            }
            assert!(start.elapsed() < SOON, "it is to be joined");
        }
    }

    async fn is_not_asked(&mut self) {
        assert!(tokio::time::timeout(NEVER, self.wishes.recv()).await.is_err());
    }
}

fn refusal(why: WhyNot, side: Option<handover::Side>, again: bool) -> Refusal {
    Refusal { why, side, again }
}

impl World {
    /// Moves to the kernel after one round trip.
    fn new() -> Self {
        Self::with(Agent::new(), |_| {})
    }

    fn with(agent: Agent, change: impl FnOnce(&mut NodeSettings)) -> Self {
        let ((client, downstream), (server, upstream)) = (pair(), pair());
        let mut settings = NodeSettings::default();
        settings.offload.after.messages = 2;
        change(&mut settings);
        let facts = FlowFacts {
            listener: "test".into(),
            source: Source::unidentified("127.0.0.1:1".parse().unwrap()),
            pod: None,
            destination: "127.0.0.1:2".parse().unwrap(),
            destination_workload: None,
            service: None,
            policy: None,
            tunnel: None,
            is_judged_elsewhere: false,
            chain: None,
        };
        let flow = Arc::new(Flow::new(facts, SystemTime::now(), true));
        let (its_flow, offload) = (flow.clone(), agent.offload.clone());
        let relay = tokio::spawn(async move {
            let (downstream, upstream) = (Stream::new(downstream).unwrap(), Stream::new(upstream).unwrap());
            let prospect = Prospect {
                offload: &offload,
                settings: &settings.offload,
                locality: Locality {
                    client: Near::Yes,
                    server: Near::Yes,
                },
            };
            relay(&downstream, &upstream, &its_flow, &settings, Vec::new(), prospect).await
        });
        Self {
            client,
            server,
            flow,
            relay,
            agent,
        }
    }

    async fn ask(&mut self, text: &[u8]) {
        self.client.write_all(text).await.unwrap();
        self.arrives(text).await;
    }

    async fn arrives(&mut self, text: &[u8]) {
        let mut read = vec![0; text.len()];
        let reading = self.server.read_exact(&mut read);
        tokio::time::timeout(SOON, reading).await.expect("in time").unwrap();
        assert_eq!(read, text);
    }

    async fn nothing_arrives(&mut self) {
        tokio::time::sleep(NEVER).await;
        let read = self.server.try_read(&mut [0]);
        assert!(
            read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock),
            "nothing may be sent now"
        );
    }

    async fn answer(&mut self, text: &[u8]) {
        self.server.write_all(text).await.unwrap();
        let mut read = vec![0; text.len()];
        let reading = self.client.read_exact(&mut read);
        tokio::time::timeout(SOON, reading).await.expect("in time").unwrap();
        assert_eq!(read, text);
    }

    async fn round_trip(&mut self) {
        self.ask(b"ping").await;
        self.answer(b"pong").await;
    }

    /// Lets the flow be joined by `kernel`.
    async fn join(&mut self, kernel: &Arc<FakeKernel>) {
        self.round_trip().await;
        self.agent.asked().await.answer(Ok(kernel.joined()));
        self.eventually("the flow is joined", |world| world.flow.offload.kernel().is_some())
            .await;
    }

    async fn eventually(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + SOON;
        while !is_so(self) {
            assert!(Instant::now() < deadline, "{what}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn ended(self) -> Ending {
        tokio::time::timeout(SOON, self.relay).await.expect("in time").unwrap()
    }
}

fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
}

async fn is_reset(stream: &mut TcpStream) -> bool {
    let mut rest = Vec::new();
    let read = tokio::time::timeout(SOON, stream.read_to_end(&mut rest)).await;
    matches!(read.expect("in time"), Err(error) if error.kind() == io::ErrorKind::ConnectionReset)
}

#[tokio::test]
async fn a_flow_is_held_while_it_is_joined_and_goes_on_where_it_was() {
    let mut world = World::new();
    assert_eq!(world.flow.offload.why_not(), Some(WhyNot::TooYoung));
    world.round_trip().await;
    let order = world.agent.asked().await;
    world.client.write_all(b"held").await.unwrap();
    world.nothing_arrives().await;
    let kernel = FakeKernel::new(7);
    order.answer(Ok(kernel.joined()));
    world.arrives(b"held").await;
    world.answer(b"back").await;
    world.ask(b"and on").await;
    let counted = [Way::Out, Way::In].map(|way| kernel.handed_on(way));
    assert_eq!(counted, [10, 4], "from the join on, nothing before");
    assert_eq!((kernel.armed(), world.flow.offload.why_not()), ([true; 2], None));
    assert_eq!((world.flow.sent(), world.flow.received()), (14, 8));
    drop(world.client);
    assert_eq!(world.server.read(&mut [0; 9]).await.unwrap(), 0);
    drop(world.server);
    assert_eq!(world.relay.await.unwrap(), Ending::Completed);
    assert_eq!(kernel.armed(), [false; 2]);
}

#[tokio::test]
async fn who_has_not_read_yet_is_asked_again_for_a_moment_and_later_again() {
    let mut world = World::new();
    world.round_trip().await;
    let (mut asked, flow) = (0, world.flow.clone());
    loop {
        let given_up = async {
            while flow.offload.why_not() != Some(WhyNot::NotQuiet) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::select! {
            order = world.agent.asked() => order.answer(Err(refusal(WhyNot::NotQuiet, None, true))),
            () = given_up => break,
        }
        asked += 1;
    }
    assert!((2..=20).contains(&asked), "{asked} times within 15 ms");
    // It goes on, and is left alone for a while.
    world.round_trip().await;
    world.agent.is_not_asked().await;
    let order = world.agent.asked_while_talking(&mut world.client).await;
    order.answer(Ok(FakeKernel::new(1).joined()));
    world
        .eventually("it is joined", |world| world.flow.offload.why_not().is_none())
        .await;
}

#[tokio::test]
async fn a_blocking_application_is_asked_about_a_few_times_and_then_no_more() {
    let mut agent = Agent::new();
    for _ in 0..3 {
        let mut world = World::with(agent, |_| {});
        world.round_trip().await;
        let order = world.agent.asked().await;
        order.answer(Err(refusal(WhyNot::Blocking, Some(handover::Side::Server), false)));
        world.round_trip().await;
        world.agent.is_not_asked().await;
        assert_eq!(world.flow.offload.why_not(), Some(WhyNot::Blocking));
        agent = world.agent;
    }
    let mut next = World::with(agent, |_| {});
    next.round_trip().await;
    next.round_trip().await;
    next.agent.is_not_asked().await;
    assert_eq!(next.flow.offload.why_not(), Some(WhyNot::Blocking));
}

#[tokio::test]
async fn an_agent_that_goes_away_lets_the_flow_go_on() {
    let mut world = World::new();
    world.round_trip().await;
    drop(world.agent.asked().await);
    world.round_trip().await;
    assert_eq!(world.flow.offload.why_not(), Some(WhyNot::NoAgent));
}

#[tokio::test]
async fn what_a_receiver_has_no_room_for_stays_with_its_sender() {
    let (mut world, kernel) = (World::new(), FakeKernel::new(3));
    world.join(&kernel).await;
    kernel.set_queue(Way::Out, 2 << 20);
    world.client.write_all(b"parked").await.unwrap();
    world.nothing_arrives().await;
    let joined = world.flow.offload.kernel().unwrap().clone();
    assert!(joined.is_parked(Way::Out) && !joined.is_parked(Way::In));
    assert_eq!(world.agent.offload.counts.parks(), 1);
    // The other direction does not mind.
    world.answer(b"back").await;
    kernel.set_queue(Way::Out, 256 << 10);
    world.arrives(b"parked").await;
    assert!(!joined.is_parked(Way::Out));
}

#[tokio::test]
async fn nothing_is_measured_while_there_is_nothing_to_send_or_what_was_measured_holds() {
    let (mut world, kernel) = (World::new(), FakeKernel::new(3));
    let measurements = || kernel.measurements.load(Ordering::SeqCst);
    world.join(&kernel).await;
    world.ask(b"1").await;
    let before = measurements();
    world.flow.set_offload_allowed(true);
    tokio::time::sleep(NEVER).await;
    assert_eq!(measurements(), before);
    world.ask(b"2").await;
    assert_eq!(measurements(), before, "nobody else has sent anything");
    kernel.count(Way::Out, |tally| tally.bypassed_bytes += 1);
    world.ask(b"3").await;
    assert!(measurements() > before);
}

#[tokio::test]
async fn no_more_than_there_is_room_for_is_sent_on_one_measurement() {
    let (mut world, kernel) = (World::new(), FakeKernel::new(3));
    world.join(&kernel).await;
    world.ask(b"measured").await;
    kernel.set_queue(Way::Out, 2 << 20);
    let (mut client, mut server) = (world.client, world.server);
    let writing = tokio::spawn(async move { client.write_all(&[7; 4 << 20]).await.map(|()| client) });
    let reading = tokio::spawn(async move {
        let mut bytes = vec![0; 64 << 10];
        while server.read(&mut bytes).await.is_ok_and(|read| read > 0) {}
    });
    let joined = world.flow.offload.kernel().unwrap().clone();
    let deadline = Instant::now() + SOON;
    while !joined.is_parked(Way::Out) {
        assert!(Instant::now() < deadline, "its sender waits");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let relayed = world.flow.relayed(Way::Out);
    // The low watermark; from it up to the limit if the sender had waited.
    let low = u64::from(underpass_config::OffloadSettings::default().low_watermark.0);
    assert!((low..low + (128 << 10)).contains(&relayed), "{relayed}");
    kernel.set_queue(Way::Out, 0);
    let client = tokio::time::timeout(SOON, writing).await.unwrap().unwrap();
    drop(client);
    world.flow.end(Ending::Drained);
    reading.await.unwrap();
}

#[tokio::test]
async fn a_reset_is_noticed_while_the_sender_waits_for_room() {
    let (mut world, kernel) = (World::new(), FakeKernel::new(3));
    world.join(&kernel).await;
    kernel.set_queue(Way::Out, 2 << 20);
    world.client.write_all(b"last words").await.unwrap();
    let joined = world.flow.offload.kernel().unwrap().clone();
    world
        .eventually("the sender waits", |_| joined.is_parked(Way::Out))
        .await;
    reset(world.client);
    let mut words = [0; 10];
    tokio::time::timeout(SOON, world.server.read_exact(&mut words))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&words, b"last words", "as from the receiver's own queue");
    assert!(is_reset(&mut world.server).await);
    assert_eq!(world.relay.await.unwrap(), Ending::DownstreamReset);
}

#[tokio::test]
async fn what_a_reset_leaves_is_not_delivered_while_the_agent_may_be_joining() {
    let mut world = World::new();
    world.round_trip().await;
    let order = world.agent.asked().await;
    world.client.write_all(b"last words").await.unwrap();
    let client = std::mem::replace(&mut world.client, pair().0);
    reset(client);
    world.nothing_arrives().await;
    order.answer(Err(refusal(WhyNot::NotEstablished, None, false)));
    let mut words = [0; 10];
    tokio::time::timeout(SOON, world.server.read_exact(&mut words))
        .await
        .unwrap()
        .unwrap();
    assert!(is_reset(&mut world.server).await);
}

#[tokio::test]
async fn a_receiver_that_closes_with_bytes_unread_resets_its_sender() {
    let (mut world, kernel) = (World::new(), FakeKernel::new(3));
    world.join(&kernel).await;
    world.server.write_all(b"bye").await.unwrap();
    kernel.count(Way::Out, |tally| tally.notes = note::UNREAD_CLOSE);
    drop(world.server);
    let mut read = [0; 3];
    world.client.read_exact(&mut read).await.unwrap();
    assert!(is_reset(&mut world.client).await);
    assert_eq!(world.relay.await.unwrap(), Ending::UpstreamReset);
}

#[tokio::test]
async fn an_end_is_passed_on_as_an_end_although_a_killed_proxy_would_reset() {
    let (mut world, kernel) = (World::new(), FakeKernel::new(3));
    world.join(&kernel).await;
    world.client.shutdown().await.unwrap();
    assert_eq!(world.server.read(&mut [0; 9]).await.unwrap(), 0);
    world.answer(b"the rest").await;
    drop(world.server);
    assert_eq!(world.client.read(&mut [0; 9]).await.unwrap(), 0, "an end, no reset");
    assert_eq!(world.relay.await.unwrap(), Ending::Completed);
}

#[tokio::test]
async fn an_end_waits_until_what_was_redirected_has_been_read() {
    let (mut world, kernel) = (World::new(), FakeKernel::new(3));
    world.join(&kernel).await;
    kernel.set_queue(Way::Out, 1);
    world.client.shutdown().await.unwrap();
    let mut end = [0; 1];
    let early = tokio::time::timeout(Duration::from_millis(50), world.server.read(&mut end)).await;
    assert!(early.is_err(), "{early:?}");
    kernel.set_queue(Way::Out, 0);
    assert_eq!(world.server.read(&mut end).await.unwrap(), 0);
}

#[tokio::test]
async fn a_proxy_that_is_killed_resets_both_sides() {
    let (mut world, kernel) = (World::new(), FakeKernel::new(3));
    world.join(&kernel).await;
    world.relay.abort();
    assert!(is_reset(&mut world.client).await && is_reset(&mut world.server).await);
}

#[tokio::test]
async fn settings_take_a_flow_back_and_let_it_go_again() {
    let (mut world, kernel) = (World::new(), FakeKernel::new(3));
    world.join(&kernel).await;
    world.flow.set_offload_allowed(false);
    assert_eq!(kernel.armed(), [false; 2], "at once");
    world.round_trip().await;
    assert_eq!(kernel.armed(), [false; 2]);
    assert_eq!(world.flow.offload.why_not(), Some(WhyNot::OffBySettings));
    let handed_on = kernel.handed_on(Way::Out);
    world.ask(b"by redirect").await;
    assert_eq!(kernel.handed_on(Way::Out), handed_on + 11, "the count goes on");
    world.flow.set_offload_allowed(true);
    world
        .eventually("it is armed again", |_| kernel.armed() == [true; 2])
        .await;
}

#[tokio::test]
async fn a_flow_that_settings_keep_out_is_joined_once_they_let_it() {
    let mut world = World::new();
    world.flow.set_offload_allowed(false);
    world.round_trip().await;
    world.agent.is_not_asked().await;
    assert_eq!(world.flow.offload.why_not(), Some(WhyNot::OffBySettings));
    world.flow.set_offload_allowed(true);
    world.agent.asked_while_talking(&mut world.client).await;
}

#[tokio::test]
async fn a_denied_flow_is_disarmed_before_its_relay_runs() {
    let (mut world, kernel) = (World::new(), FakeKernel::new(3));
    world.join(&kernel).await;
    world.flow.end(Ending::PolicyRevoked);
    assert_eq!(kernel.armed(), [false; 2], "this runs before the relay does");
    assert!(is_reset(&mut world.client).await && is_reset(&mut world.server).await);
    assert_eq!(world.ended().await, Ending::PolicyRevoked);
}

#[tokio::test]
async fn bytes_that_pass_by_are_counted_and_keep_the_connection_from_being_idle() {
    let idle = Duration::from_millis(200);
    let (mut world, kernel) = (
        World::with(Agent::new(), |node| node.timeouts.idle = idle),
        FakeKernel::new(3),
    );
    world.join(&kernel).await;
    let (start, flow) = (Instant::now(), world.flow.clone());
    while start.elapsed() < 3 * idle {
        kernel.count(Way::In, |tally| tally.bypassed_bytes += 1000);
        tokio::time::sleep(idle / 4).await;
        assert!(!world.relay.is_finished(), "after {:?}", start.elapsed());
    }
    let stopped = Instant::now();
    assert_eq!(world.ended().await, Ending::IdleTimeout);
    assert!(stopped.elapsed() < 2 * idle, "{:?}", stopped.elapsed());
    assert_eq!(flow.received(), 4 + flow.offload.bypassed(Way::In));
    // What is counted for the next flow in this place of the memory is not this one's.
    flow.offload.kernel().unwrap().settle();
    let received = flow.received();
    kernel.count(Way::In, |tally| tally.bypassed_bytes = 0);
    assert_eq!(flow.received(), received);
}

#[tokio::test]
async fn a_flow_with_an_end_elsewhere_is_none_of_the_kernels() {
    let mut agent = Agent::new();
    let ((mut client, downstream), (server, upstream)) = (pair(), pair());
    let facts = FlowFacts {
        listener: "test".into(),
        source: Source::unidentified("192.0.2.1:1".parse().unwrap()),
        pod: None,
        destination: "127.0.0.1:2".parse().unwrap(),
        destination_workload: None,
        service: None,
        policy: None,
        tunnel: None,
        is_judged_elsewhere: false,
        chain: None,
    };
    let flow = Arc::new(Flow::new(facts, SystemTime::now(), true));
    let mut settings = NodeSettings::default();
    settings.offload.after.messages = 1;
    let (downstream, upstream) = (Stream::new(downstream).unwrap(), Stream::new(upstream).unwrap());
    let prospect = Prospect {
        offload: &agent.offload.clone(),
        settings: &settings.offload,
        locality: Locality {
            client: Near::IfOneAddress,
            server: Near::Yes,
        },
    };
    let talk = async {
        client.write_all(b"hello").await.unwrap();
        server.readable().await.unwrap();
        agent.is_not_asked().await;
    };
    tokio::select! {
        _ = relay(&downstream, &upstream, &flow, &settings, Vec::new(), prospect) => panic!("it has not ended"),
        () = talk => {}
    }
    assert_eq!(flow.offload.why_not(), Some(WhyNot::NotLocal));
}
