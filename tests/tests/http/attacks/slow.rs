//! Who says little, and slowly, and who does not read.

use std::time::Duration;

use super::Place;
use super::frames::{END_HEADERS, END_STREAM, HEADERS, Peer, WINDOW_UPDATE, block, frame, pseudo};
use super::siege::besieged;
use crate::client::{Client, get};

/// Clients of each attack.
const CLIENTS: usize = 500;

#[test]
fn heads_and_bodies_that_come_slowly_hold_little_and_end() {
    let place = Place::with_timeouts("handshake: 4s, idle: 6s");
    besieged(&place, "slow heads", 48, || {
        let mut clients: Vec<Client> = (0..CLIENTS).map(|_| Client::connect(&place.client, place.at)).collect();
        for (n, client) in clients.iter_mut().enumerate() {
            client.send(
                match n % 3 {
                    0 => "GET /slow HTTP/1.1\r\nhost: web.test\r\nx-slow: ",
                    1 => "G",
                    _ => "PRI * HTT",
                }
                .as_bytes(),
            );
        }
        for _ in 0..10 {
            std::thread::sleep(Duration::from_millis(500));
            for client in clients.iter_mut().step_by(3) {
                client.send(b"y");
            }
        }
        for client in &mut clients {
            assert!(client.ends(), "it may take its time for ever");
        }
    });
    besieged(&place, "slow bodies", 48, || {
        let head = get("/slow", "content-length: 1000\r\n").replacen("GET", "POST", 1);
        let mut clients: Vec<Client> = (0..CLIENTS).map(|_| Client::connect(&place.client, place.at)).collect();
        clients.iter_mut().for_each(|client| client.send(head.as_bytes()));
        for client in &mut clients {
            assert!(client.ends(), "a body of which nothing comes is waited for for ever");
        }
    });
}

/// Windows that are never opened: what endpoints say is not kept here.
#[test]
fn what_clients_do_not_read_is_not_heaped_up() {
    let place = Place::with_timeouts("handshake: 4s, idle: 6s");
    besieged(&place, "stalled windows", 64, || {
        // SETTINGS_INITIAL_WINDOW_SIZE 0, and a connection that may have anything.
        let mut peers: Vec<Peer> = (0..8).map(|_| Peer::connect(&place, &[0, 4, 0, 0, 0, 0])).collect();
        for peer in &mut peers {
            peer.send(&frame(WINDOW_UPDATE, 0, 0, &0x7fff_0000u32.to_be_bytes()))
                .expect("the proxy reads");
            for n in 0..50 {
                let fields = [pseudo("GET", "/big"), vec![("x-big", "4000000")]].concat();
                let head = frame(HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, &block(&fields));
                peer.send(&head).expect("the proxy reads");
            }
        }
        std::thread::sleep(Duration::from_secs(2));
    });
    besieged(&place, "slow readers", 96, || {
        let big = get("/big", "x-big: 40000000\r\n");
        let mut clients: Vec<Client> = (0..CLIENTS / 2)
            .map(|_| Client::connect(&place.client, place.at))
            .collect();
        clients.iter_mut().for_each(|client| client.send(big.as_bytes()));
        std::thread::sleep(Duration::from_secs(2));
    });
}
