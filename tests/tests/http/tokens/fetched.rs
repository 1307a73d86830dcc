//! Keys that are asked for: of servers that have them, are slow, are down, or lie.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use underpass_tests::{Host, Proxy, World, wait};

use super::super::client::{Seen, ask, get};
use super::super::endpoint::{Endpoint, Tries};
use super::{good, policies, yaml};
use underpass_tests::tokens::{By, Issuer};

/// What the server does when it is asked.
#[derive(Clone, Debug)]
enum Does {
    /// Answers with these bytes.
    Says(Vec<u8>),
    /// Sends bytes without an end.
    Endless,
    /// Nothing.
    Hangs,
    /// Sends the first half of an answer.
    Half(Vec<u8>),
    /// Closes.
    Closes,
}

impl Does {
    fn keys(issuer: &Issuer) -> Self {
        Self::json("200 OK", &issuer.jwks().to_string())
    }

    fn json(status: &str, body: &str) -> Self {
        let head = format!(
            "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n",
            body.len()
        );
        Self::Says(format!("{head}location: /elsewhere\r\n\r\n{body}").into_bytes())
    }
}

/// A server of keys.
struct Keys {
    address: SocketAddr,
    does: Arc<Mutex<Does>>,
    /// What it was asked for.
    asked: Arc<Mutex<Vec<String>>>,
}

impl Keys {
    fn start(host: &Host, does: Does) -> Self {
        let listener = host.listen(9100);
        let keys = Self {
            address: listener.local_addr().expect("a socket"),
            does: Arc::new(Mutex::new(does)),
            asked: Arc::default(),
        };
        let (does, asked) = (keys.does.clone(), keys.asked.clone());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (does, asked) = (does.clone(), asked.clone());
                thread::spawn(move || answer(stream, &does, &asked));
            }
        });
        keys
    }

    fn now(&self, does: Does) {
        *self.does.lock().expect("no test panics with it") = does;
    }
}

fn answer(mut stream: TcpStream, does: &Mutex<Does>, asked: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let mut head = String::new();
    while let Some(line) = lines.next().transpose()?.filter(|line| !line.is_empty()) {
        head += &line;
        head.push('\n');
    }
    asked.lock().expect("no test panics with it").push(head);
    let does = does.lock().expect("no test panics with it").clone();
    match does {
        Does::Says(bytes) => stream.write_all(&bytes),
        Does::Half(bytes) => stream.write_all(&bytes[..bytes.len() / 2]),
        Does::Closes => Ok(()),
        Does::Hangs => lines.next().transpose().map(drop),
        Does::Endless => {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n{\"keys\": [")?;
            loop {
                stream.write_all(&[b' '; 64 * 1024])?;
            }
        }
    }
}

struct Guarded {
    client: Host,
    us: Host,
    keys: Keys,
    issuer: Issuer,
    proxy: Proxy,
    _world: World,
}

impl Guarded {
    fn start(does: impl FnOnce(&Issuer) -> Does) -> Self {
        let world = World::loopback();
        let (client, us) = (world.host(), world.host());
        let web = Endpoint::start(&world.host(), 9001, "w", Tries::default()).address;
        let issuer = Issuer::new();
        let keys = Keys::start(&world.host(), does(&issuer));
        let file = world.directory().join("http.yaml");
        let clusters = format!(", {{name: keys, endpoints: ['{}']}}", keys.address);
        let fetched = "jwksUri: 'https://issuer.test/keys?v=1'\n        cluster: keys\n        timeout: 1s\n        cache_duration: 300ms";
        // Its own time-out is there already.
        let policies = policies(fetched).replace("        timeout: 5s\n", "");
        std::fs::write(&file, yaml(&us, web, &clusters, &policies)).expect("write the configuration");
        Self {
            proxy: Proxy::start_with_file(&world, &us, file),
            client,
            us,
            keys,
            issuer,
            _world: world,
        }
    }

    fn with(&self, token: &str) -> Seen {
        let request = get("/x", &format!("x-jwt: Bearer {token}\r\n"));
        ask(&self.client, self.us.at(8080), &request)
    }

    fn fetches(&self, result: &str) -> u64 {
        let labels = [("cluster", "keys"), ("result", result)];
        self.proxy
            .metrics()
            .sum("underpass_http_jwt_key_fetches_total", &labels)
    }
}

#[test]
fn keys_are_asked_for_and_what_old_ones_have_verified_goes_with_them() {
    let guarded = Guarded::start(Does::keys);
    let old = guarded.issuer.token(By::Rs256, &good());
    for _ in 0..3 {
        let seen = guarded.with(&old);
        assert_eq!(seen.status, 200, "{seen:?}");
    }
    let asked = guarded.keys.asked.lock().expect("no test panics with it")[0].clone();
    let lines: Vec<&str> = asked.lines().collect();
    assert_eq!(lines[0], "GET /keys?v=1 HTTP/1.1");
    assert!(lines.contains(&"host: issuer.test"), "{asked}");
    let next = Issuer::new();
    let new = next.token(By::Rs256, &good());
    assert_eq!(guarded.with(&new).body, "Jwt verification fails");
    guarded.keys.now(Does::keys(&next));
    wait::eventually(wait::SOON, "the new keys are in force", || {
        guarded.with(&new).status == 200
    });
    assert_eq!(guarded.with(&old).body, "Jwt verification fails");
    assert!(guarded.fetches("keys") > 1);
}

/// Whatever is said in the place of keys, it admits nobody, and those that were there stay.
#[test]
fn a_server_that_lies_admits_nobody_and_takes_no_keys_away() {
    let guarded = Guarded::start(Does::keys);
    let (mallory, token) = (Issuer::new(), guarded.issuer.token(By::Es256, &good()));
    let forged = mallory.token(By::Es256, &good());
    assert_eq!(guarded.with(&token).status, 200);
    let keys = mallory.jwks().to_string();
    let Does::Says(said) = Does::keys(&mallory) else {
        unreachable!("it says them")
    };
    for (does, result) in [
        (Does::json("302 Found", &keys), "status"),
        (Does::json("500 Whatever", &keys), "status"),
        (Does::json("203 Non-Authoritative Information", &keys), "status"),
        (Does::json("200 OK", "not JSON"), "not-keys"),
        (Does::json("200 OK", r#"{"keys": []}"#), "not-keys"),
        (
            Does::json("200 OK", r#"{"keys": [{"kty": "oct", "k": ""}]}"#),
            "not-keys",
        ),
        (
            Does::json("200 OK", &keys.replacen('{', "{\"keys\": [], ", 1)),
            "not-keys",
        ),
        (Does::Says(b"SSH-2.0-what\r\n\r\n".to_vec()), "broken"),
        (Does::Half(said), "broken"),
        (Does::Closes, "broken"),
        (Does::Endless, "broken"),
        (Does::Hangs, "timed-out"),
    ] {
        let before = guarded.fetches(result);
        guarded.keys.now(does.clone());
        wait::eventually(wait::SOON, &format!("{result} after {does:.60?}"), || {
            guarded.fetches(result) > before + 2
        });
        let seen = guarded.with(&token);
        assert_eq!(seen.status, 200, "{does:.60?}: {seen:?}");
        assert_eq!(guarded.with(&forged).status, 401, "{does:.60?}");
    }
    let asked = guarded.keys.asked.lock().expect("no test panics with it");
    assert!(
        asked.iter().all(|head| head.starts_with("GET /keys?v=1 ")),
        "a redirect is not followed"
    );
}

#[test]
fn before_there_are_keys_a_token_is_waited_with_and_then_refused() {
    for (does, longest) in [(Does::Hangs, 10), (Does::Closes, 10)] {
        let guarded = Guarded::start(|_| does.clone());
        let token = guarded.issuer.token(By::EdDsa, &good());
        let began = Instant::now();
        let seen = guarded.with(&token);
        assert_eq!(
            (seen.status, &*seen.body),
            (401, "Jwks remote fetch is failed"),
            "{does:?}"
        );
        assert!(
            began.elapsed() < wait::patient(Duration::from_secs(longest)),
            "{does:?}: {:?}",
            began.elapsed()
        );
        // Who has no token needs no keys.
        let seen = ask(&guarded.client, guarded.us.at(8080), &get("/healthz", ""));
        assert_eq!(seen.status, 200);
        // Nor does what is no token of theirs.
        assert_eq!(guarded.with("a.b.c").body, "Jwt header is an invalid Base64url encoded");
        guarded.keys.now(Does::keys(&guarded.issuer));
        wait::eventually(wait::SOON, "there are keys", || guarded.with(&token).status == 200);
    }
}
