//! Hosts that requests are for, as DNS knows them: asked for when somebody wants one (Envoy's dynamic forward proxy).
//!
//! What was answered holds as long as it says, for all cores. A host is asked for by one at a time; the others wait for that. Peers decide which hosts there are, so
//! there is a bound: answers that hold no more give way, and while there is no room, no other host is asked for. A host that can't be asked for keeps what it had.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use foldhash::quality::RandomState;
use hickory_resolver::lookup_ip::LookupIp;
use hickory_resolver::net::{DnsError, NetError};
use underpass_config::Text;
use underpass_config::http::HostDiscovery;

use super::discovery::{FAMILIES, LONGEST, SHORTEST, is_of_a_host, resolver};

/// Hosts that are known at once (`DnsCacheConfig.max_hosts`).
const MOST: usize = 1024;
/// How long an answer may take (`DnsCacheConfig.dns_query_timeout`).
const PATIENCE: Duration = Duration::from_secs(5);
/// How long one server may take to answer, so that there is time for another try.
const ONE_TRY: Duration = Duration::from_secs(2);
/// The longest that a host's name may be (RFC 1035, section 2.3.4).
const LONGEST_NAME: usize = 253;

/// Why a host has no address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unresolved {
    /// DNS has none for it, or can't be asked.
    Failed(Arc<str>),
    /// Too many others are known.
    Full,
}

type Key = (Text, HostDiscovery);
type Known = HashMap<Key, Arc<Host>, RandomState>;

/// All that are known. Requests read it without a lock.
#[derive(Debug, Default)]
pub struct Names {
    known: ArcSwap<Known>,
    adding: Mutex<()>,
}

#[derive(Debug, Default)]
struct Host {
    answer: ArcSwapOption<Answer>,
    asking: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Answer {
    addresses: Result<Arc<[IpAddr]>, Arc<str>>,
    until: Instant,
}

impl Host {
    /// What is known, if that holds.
    fn holding(&self) -> Option<Arc<Answer>> {
        self.answer.load_full().filter(|answer| answer.until > Instant::now())
    }
}

impl Names {
    /// The addresses of a host; never none.
    ///
    /// # Errors
    /// Why there are none.
    pub async fn addresses(&self, host: &str, asked: &HostDiscovery) -> Result<Arc<[IpAddr]>, Unresolved> {
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok([ip.to_canonical()].into());
        }
        if host.is_empty() || host.len() > LONGEST_NAME {
            return Err(Unresolved::Failed("this is no name of a host".into()));
        }
        let key = (host.to_ascii_lowercase().as_str().into(), asked.clone());
        let host = self.host(key.clone())?;
        let answer = match host.holding() {
            Some(answer) => answer,
            None => {
                let _asking = host.asking.lock().await;
                match host.holding() {
                    Some(answer) => answer,
                    None => {
                        let answer = Arc::new(ask(&key.0, asked, host.answer.load_full()).await);
                        host.answer.store(Some(answer.clone()));
                        answer
                    }
                }
            }
        };
        answer.addresses.clone().map_err(Unresolved::Failed)
    }

    fn host(&self, key: Key) -> Result<Arc<Host>, Unresolved> {
        if let Some(host) = self.known.load().get(&key) {
            return Ok(host.clone());
        }
        let _adding = self.adding.lock().unwrap_or_else(PoisonError::into_inner);
        let mut known = Known::clone(&self.known.load());
        if let Some(host) = known.get(&key) {
            return Ok(host.clone());
        }
        if known.len() >= MOST {
            // Whoever is asking, or waits for that, has it too.
            known.retain(|_, host| Arc::strong_count(host) > 2 || host.holding().is_some());
        }
        if known.len() >= MOST {
            return Err(Unresolved::Full);
        }
        let host = Arc::<Host>::default();
        known.insert(key, host.clone());
        self.known.store(Arc::new(known));
        Ok(host)
    }
}

/// Asks for a host, of which `before` was known.
async fn ask(host: &Text, asked: &HostDiscovery, before: Option<Arc<Answer>>) -> Answer {
    let [v6, v4] = asked.family.asks();
    let families = [(v6, FAMILIES[0]), (v4, FAMILIES[1])].map(|(is_asked, family)| async move {
        if !is_asked {
            return None;
        }
        // Each by a resolver of its own: what one has open belongs to the core that asks.
        Some(match resolver(&asked.servers, family, ONE_TRY) {
            Ok(resolver) => resolver.lookup_ip(&**host).await,
            Err(error) => Err(error),
        })
    });
    let [v6, v4] = families;
    let answers = tokio::time::timeout(PATIENCE, async { tokio::join!(v6, v4) }).await;
    let Ok((v6, v4)) = answers else {
        return failed(host, "DNS has no answer in time", before);
    };
    read(host, asked, [v6, v4], before)
}

fn read(
    host: &Text,
    asked: &HostDiscovery,
    answers: [Option<Result<LookupIp, NetError>>; 2],
    before: Option<Arc<Answer>>,
) -> Answer {
    let (mut holds, mut error) = (LONGEST, None);
    let addresses = answers.map(|answer| match answer {
        Some(Ok(answer)) => {
            let ttl = answer.valid_until().saturating_duration_since(Instant::now());
            holds = holds.min(ttl.max(SHORTEST));
            answer.iter().map(|ip| ip.to_canonical()).filter(is_of_a_host).collect()
        }
        // It says so; else nothing is said.
        Some(Err(NetError::Dns(DnsError::NoRecordsFound(_)))) | None => Vec::new(),
        Some(Err(other)) => {
            error = Some(other.to_string());
            Vec::new()
        }
    });
    let [v6, v4] = &addresses;
    let chosen = asked.family.chosen([v6, v4]).concat();
    match (chosen.is_empty(), error) {
        (false, _) => Answer {
            addresses: Ok(chosen.into()),
            until: Instant::now() + holds,
        },
        (true, Some(error)) => failed(host, &error, before),
        (true, None) => failed(host, "DNS has no address for it", None),
    }
}

/// It is asked for again soon, and what it had stays until then.
fn failed(host: &Text, why: &str, before: Option<Arc<Answer>>) -> Answer {
    tracing::debug!(host = &**host, why, "a host could not be resolved");
    let had = before.and_then(|before| before.addresses.clone().ok());
    Answer {
        addresses: had.ok_or_else(|| why.into()),
        until: Instant::now() + SHORTEST,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: usize) -> Key {
        (
            format!("{number}.test.example").as_str().into(),
            HostDiscovery::default(),
        )
    }

    fn holds(names: &Names, number: usize, holds: Duration) {
        let host = names.host(key(number)).unwrap();
        host.answer.store(Some(Arc::new(Answer {
            addresses: Err("".into()),
            until: Instant::now() + holds,
        })));
    }

    #[test]
    fn no_more_hosts_are_known_than_may_be_and_what_holds_stays() {
        let names = Names::default();
        (0..MOST).for_each(|number| holds(&names, number, LONGEST));
        assert_eq!(names.host(key(MOST)).err(), Some(Unresolved::Full));
        assert!(names.host(key(0)).unwrap().holding().is_some());
        holds(&names, 7, Duration::ZERO);
        assert!(names.host(key(MOST)).is_ok(), "one holds no more");
        assert_eq!(names.known.load().len(), MOST);
    }

    #[tokio::test]
    async fn an_address_stands_for_itself_and_what_is_no_name_is_not_asked_for() {
        let names = Names::default();
        let asked = HostDiscovery::default();
        let addresses = names.addresses("::ffff:10.0.0.1", &asked).await.unwrap();
        assert_eq!(addresses[..], ["10.0.0.1".parse::<IpAddr>().unwrap()]);
        for host in ["", &"a".repeat(300)] {
            assert!(names.addresses(host, &asked).await.is_err());
        }
        assert!(names.known.load().is_empty());
    }

    #[test]
    fn a_host_that_cannot_be_asked_for_keeps_what_it_had() {
        let had: Arc<[IpAddr]> = ["10.0.0.1".parse().unwrap()].into();
        let before = Arc::new(Answer {
            addresses: Ok(had.clone()),
            until: Instant::now(),
        });
        assert_eq!(failed(&"a".into(), "no", Some(before)).addresses, Ok(had));
        assert!(failed(&"a".into(), "no", None).addresses.is_err());
    }
}
