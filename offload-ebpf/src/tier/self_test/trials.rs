//! The behaviours that the tier rests on, or that applications do.

use std::io::{ErrorKind, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use rustix::event::epoll;
use rustix::net::sockopt;

use super::bench::{Answer, Bench, Found, LIMIT, expect, expect_end, expect_nothing, text, write};
use underpass_ebpf_abi::tier::{MESSAGE_COST, cost};

use crate::socket::set_notsent_lowat;
use crate::tier::{Direction, Variant};

pub(super) type Attempt = fn(&Bench, Variant) -> Found<()>;

pub(super) const ALL: [(&str, Attempt); 11] = [
    ("a message goes straight to the receiver", redirect),
    (
        "bytes that went through the proxy stay before those that did not",
        order,
    ),
    ("FIONREAD counts redirected bytes", fionread),
    ("each message wakes an edge-triggered epoll", edges),
    ("what waits at the receiver is accounted, and bounded", bound),
    ("the end comes after redirected bytes", end),
    ("a reset comes after redirected bytes", reset),
    ("after a half-close the other direction goes on", half_close),
    ("the sender sleeps as soon as its bytes are left unread", sleep),
    ("a socket that another program has is refused", busy),
    ("a socket that was taken out is as before", restored),
];

fn redirect(bench: &Bench, variant: Variant) -> Found<()> {
    let flow = bench.flow(variant)?;
    write(&flow.a, b"past")?;
    expect(&flow.b, b"past")?;
    expect_nothing(&flow.pa)?;
    write(&flow.b, b"back")?;
    expect(&flow.a, b"back")?;
    expect_nothing(&flow.h)
}

fn order(bench: &Bench, variant: Variant) -> Found<()> {
    let flow = bench.flow(variant)?;
    flow.joined.disarm(Direction::Out);
    write(&flow.a, b"first ")?;
    flow.joined.arm(Direction::Out);
    write(&flow.a, b"second ")?;
    expect(&flow.pa, b"first second ")?;
    write(&flow.h, b"first second ")?;
    flow.joined.handed_on(Direction::Out, 13);
    write(&flow.a, b"third")?;
    expect_nothing(&flow.pa)?;
    expect(&flow.b, b"first second third")
}

fn fionread(bench: &Bench, variant: Variant) -> Found<()> {
    let flow = bench.flow(variant)?;
    let expect_waiting = |bytes: u64| {
        let found = rustix::io::ioctl_fionread(&flow.b).map_err(|e| text("FIONREAD")(&e))?;
        if found == bytes {
            Ok(())
        } else {
            Err(format!("{found} where {bytes} bytes wait"))
        }
    };
    write(&flow.a, &[1; 1500])?;
    expect_waiting(1500)?;
    expect(&flow.b, &[1; 400])?;
    expect_waiting(1100)?;
    write(&flow.h, &[1; 100])?;
    expect_waiting(1200)?;
    expect(&flow.b, &[1; 1200])?;
    expect_waiting(0)
}

fn edges(bench: &Bench, variant: Variant) -> Found<()> {
    let flow = bench.flow(variant)?;
    let cannot = text("epoll");
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|e| cannot(&e))?;
    let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
    epoll::add(&epoll, &flow.b, epoll::EventData::new_u64(1), flags).map_err(|e| cannot(&e))?;
    for number in 0..100 {
        write(&flow.a, b"edge")?;
        let mut events = Vec::with_capacity(4);
        let timeout = rustix::event::Timespec { tv_sec: 1, tv_nsec: 0 };
        let buffer = rustix::buffer::spare_capacity(&mut events);
        epoll::wait(&epoll, buffer, Some(&timeout)).map_err(|e| cannot(&e))?;
        if events.is_empty() {
            return Err(format!("no event for message {number}"));
        }
        // Every other one stays unread.
        if number % 2 == 1 {
            expect(&flow.b, b"edgeedge")?;
        }
    }
    Ok(())
}

fn bound(bench: &Bench, variant: Variant) -> Found<()> {
    const MESSAGE: usize = 30_000;
    let flow = bench.flow(variant)?;
    // The first that finds more than the limit waiting goes to the proxy.
    let fitting = LIMIT as usize / (MESSAGE + MESSAGE_COST as usize) + 1;
    for number in 1..=fitting {
        write(&flow.a, &[2; MESSAGE])?;
        let (queued, expected) = (bench.queued(&flow)?, cost((number * MESSAGE) as u32, number as u32));
        if queued != expected {
            return Err(format!("{queued} bytes are accounted where {expected} wait"));
        }
    }
    expect_nothing(&flow.pa)?;
    write(&flow.a, &[2; MESSAGE])?;
    expect(&flow.pa, &[2; MESSAGE])?;
    expect(&flow.b, &vec![2; fitting * MESSAGE])?;
    match bench.queued(&flow)? {
        0 => Ok(()),
        queued => Err(format!("{queued} bytes are accounted where none wait")),
    }
}

fn end(bench: &Bench, variant: Variant) -> Found<()> {
    let flow = bench.flow(variant)?;
    write(&flow.a, b"last words")?;
    drop(flow.a);
    expect_end(&flow.pa, &Answer::End)?;
    drop(flow.h);
    expect(&flow.b, b"last words")?;
    expect_end(&flow.b, &Answer::End)
}

fn reset(bench: &Bench, variant: Variant) -> Found<()> {
    let flow = bench.flow(variant)?;
    write(&flow.a, b"last words")?;
    abort(flow.a)?;
    expect_end(&flow.pa, &Answer::Reset)?;
    abort(flow.h)?;
    expect(&flow.b, b"last words")?;
    expect_end(&flow.b, &Answer::Reset)
}

fn abort(socket: TcpStream) -> Found<()> {
    sockopt::set_socket_linger(&socket, Some(Duration::ZERO)).map_err(|e| text("SO_LINGER")(&e))
}

fn half_close(bench: &Bench, variant: Variant) -> Found<()> {
    let flow = bench.flow(variant)?;
    let shut = |socket: &TcpStream| socket.shutdown(Shutdown::Write).map_err(|e| text("shutdown")(&e));
    write(&flow.a, b"question")?;
    shut(&flow.a)?;
    expect_end(&flow.pa, &Answer::End)?;
    shut(&flow.h)?;
    expect(&flow.b, b"question")?;
    expect_end(&flow.b, &Answer::End)?;
    write(&flow.b, b"answer")?;
    expect_nothing(&flow.h)?;
    expect(&flow.a, b"answer")
}

fn sleep(bench: &Bench, variant: Variant) -> Found<()> {
    let flow = bench.flow(variant)?;
    flow.joined.disarm(Direction::Out);
    set_notsent_lowat(&flow.a, 1).map_err(|e| text("TCP_NOTSENT_LOWAT")(&e))?;
    sockopt::set_socket_recv_buffer_size(&flow.pa, 4096).map_err(|e| text("SO_RCVBUF")(&e))?;
    let mut taken = 0;
    // Far less than a send buffer takes.
    while taken < 1_000_000 {
        match (&flow.a).write(&[3; 10_000]) {
            Ok(len) => taken += len,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(text("a send failed")(&error)),
        }
    }
    Err(format!("it sent {taken} bytes that nobody reads"))
}

fn busy(bench: &Bench, variant: Variant) -> Found<()> {
    let flow = bench.flow(variant)?;
    match bench.insert_elsewhere(&flow) {
        Err(error) if error.kind() == ErrorKind::ResourceBusy => Ok(()),
        Err(error) => Err(text("instead of EBUSY")(&error)),
        Ok(()) => Err("it was taken into a second map".to_owned()),
    }
}

fn restored(bench: &Bench, variant: Variant) -> Found<()> {
    let flow = bench.flow(variant)?;
    bench.take_out(&flow);
    write(&flow.a, b"by TCP")?;
    expect(&flow.pa, b"by TCP")?;
    expect_nothing(&flow.b)?;
    write(&flow.h, b"by TCP")?;
    expect(&flow.b, b"by TCP")
}
