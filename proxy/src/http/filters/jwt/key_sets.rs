//! The keys of providers, and what was verified by them.
//!
//! **One idea.** What is verified belongs to the keys that have verified it: whoever gets other keys begins with nothing, and nobody needs to be
//! told. What can change without the keys (the time, where a token stands, whom it is for) is asked each time. Each core has a store of its own, of a
//! bounded number of tokens of a bounded length, and only what is verified is ever put there.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use foldhash::quality::RandomState;
use serde_json::Value;
use tokio::sync::watch;
use underpass_config::Text;
use underpass_config::http::{Filter, Http, Jwks, JwksSource, JwtProvider};

use super::claims::Written;
use super::token::Terms;

/// Tokens that one core keeps of one provider (Envoy's `jwt_cache_size` is 100).
const KEPT: usize = 256;
/// Longer ones are verified each time (Envoy's `jwt_max_token_size`).
const LONGEST_KEPT: usize = 4096;

/// A token that a key has signed.
#[derive(Debug)]
pub struct Verified {
    /// When and by whom it can be used.
    pub terms: Terms,
    /// What rules see of it.
    pub claims: Arc<Value>,
    /// What the endpoint is told of it.
    pub written: Written,
}

/// Keys, and what they have verified.
#[derive(Debug)]
pub struct KeySet {
    /// The keys.
    pub keys: Arc<Jwks>,
    /// By core.
    verified: Box<[Mutex<Kept>]>,
}

type Kept = HashMap<Box<str>, Arc<Verified>, RandomState>;

impl KeySet {
    /// These keys, on a node of so many cores.
    pub fn new(keys: Arc<Jwks>, cores: usize) -> Self {
        let verified = (0..cores.max(1)).map(|_| Mutex::default()).collect();
        Self { keys, verified }
    }

    fn kept(&self, core: usize) -> MutexGuard<'_, Kept> {
        let store = &self.verified[core % self.verified.len()];
        store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A token that was verified on this core.
    pub fn verified(&self, core: usize, token: &str) -> Option<Arc<Verified>> {
        self.kept(core).get(token).cloned()
    }

    /// Keeps one for the next time, in the place of any other if there are many.
    pub fn keep(&self, core: usize, token: &str, verified: &Arc<Verified>) {
        if token.len() > LONGEST_KEPT {
            return;
        }
        let mut kept = self.kept(core);
        if kept.len() >= KEPT
            && let Some(other) = kept.keys().next().cloned()
        {
            // The order is that of a randomly seeded hash: nobody can choose which.
            kept.remove(&other);
        }
        kept.insert(token.into(), verified.clone());
    }

    #[cfg(test)]
    fn len(&self, core: usize) -> usize {
        self.kept(core).len()
    }
}

/// One provider's keys, as they are now.
#[derive(Debug)]
pub struct ProvidersKeys {
    /// Whose.
    pub provider: Arc<JwtProvider>,
    in_force: ArcSwapOption<KeySet>,
    fetches: Mutex<Fetches>,
    /// Told how often it was asked for keys.
    asked: watch::Sender<u64>,
    cores: usize,
}

/// What came of asking for keys.
#[derive(Clone, Debug, Default)]
pub struct Fetches {
    /// When they last came.
    pub fetched: Option<SystemTime>,
    /// When they last did not, and why.
    pub failed: Option<(SystemTime, String)>,
    /// When they are asked for next.
    pub next: Option<SystemTime>,
}

impl ProvidersKeys {
    fn new(provider: Arc<JwtProvider>, cores: usize) -> Self {
        let keys = match &provider.keys {
            JwksSource::Inline(keys) => Some(Arc::new(KeySet::new(keys.clone(), cores))),
            JwksSource::Remote(_) => None,
        };
        Self {
            provider,
            in_force: ArcSwapOption::from(keys),
            fetches: Mutex::default(),
            asked: watch::Sender::new(0),
            cores,
        }
    }

    /// The keys; none: there were none yet.
    pub fn in_force(&self) -> Option<Arc<KeySet>> {
        self.in_force.load_full()
    }

    /// What came of asking for them so far.
    pub fn fetches(&self) -> Fetches {
        self.fetches.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes what came of asking for them just now, and how long it is until they are asked for again.
    pub fn note_fetch(&self, failed: Option<String>, pause: Duration) {
        let now = SystemTime::now();
        let mut fetches = self.fetches.lock().unwrap_or_else(PoisonError::into_inner);
        match failed {
            None => fetches.fetched = Some(now),
            Some(why) => fetches.failed = Some((now, why)),
        }
        fetches.next = now.checked_add(pause);
    }

    /// Waits until there are some, or asking for them has failed, or has taken too long. Whether there are.
    pub async fn wait(&self, longest: Duration) -> bool {
        let mut asked = self.asked.subscribe();
        if self.in_force.load().is_none() {
            // A sender that is gone can't be: it is here.
            let _ = tokio::time::timeout(longest, asked.changed()).await;
        }
        self.in_force.load().is_some()
    }

    /// Puts keys in force; the same ones stay, with what they have verified.
    pub fn replace(&self, keys: Jwks) {
        let is_other = self.in_force.load().as_ref().is_none_or(|now| *now.keys != keys);
        if is_other {
            self.in_force
                .store(Some(Arc::new(KeySet::new(Arc::new(keys), self.cores))));
        }
        self.note_asked();
    }

    /// Notes that it was asked for keys and has brought none: what is in force stays.
    pub fn note_asked(&self) {
        self.asked.send_modify(|asked| *asked += 1);
    }
}

/// The keys of all providers. Looked up once for a connection and configuration.
#[derive(Debug)]
pub struct KeySets {
    known: Mutex<HashMap<Arc<JwtProvider>, Arc<ProvidersKeys>, RandomState>>,
    cores: usize,
}

impl KeySets {
    /// On a node of so many cores.
    pub fn new(cores: usize) -> Self {
        Self {
            known: Mutex::default(),
            cores,
        }
    }

    /// Those of a provider.
    pub fn of(&self, provider: &Arc<JwtProvider>) -> Arc<ProvidersKeys> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Arc::new(ProvidersKeys::new(provider.clone(), self.cores));
        known.entry(provider.clone()).or_insert_with(new).clone()
    }

    /// Those of the providers that `http` has, each once, with the names of the tables that ask for their tokens. What nobody has looked up yet is as it begins.
    pub fn asked_for(&self, http: &Http) -> Vec<(Arc<ProvidersKeys>, Vec<Text>)> {
        let mut found: Vec<(Arc<ProvidersKeys>, Vec<Text>)> = Vec::new();
        let mut tables: Vec<_> = http.tables.values().collect();
        tables.sort_by_key(|table| &table.name);
        for table in tables {
            for provider in table.filters.iter().flat_map(providers_of) {
                let keys = self.of(provider);
                match found.iter_mut().find(|(one, _)| Arc::ptr_eq(one, &keys)) {
                    Some((_, names)) => names.push(table.name.clone()),
                    None => found.push((keys, vec![table.name.clone()])),
                }
            }
        }
        found
    }

    /// Forgets those of providers that `http` has not; answers what is left of whose keys are asked for.
    pub fn keep(&self, http: &Http) -> Vec<Arc<ProvidersKeys>> {
        let wanted: Vec<Arc<JwtProvider>> = providers(http).cloned().collect();
        {
            let wanted: std::collections::HashSet<&Arc<JwtProvider>, RandomState> = wanted.iter().collect();
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            known.retain(|provider, _| wanted.contains(provider));
        }
        let remote = wanted.iter().filter(|one| matches!(one.keys, JwksSource::Remote(_)));
        remote.map(|provider| self.of(provider)).collect()
    }
}

fn providers(http: &Http) -> impl Iterator<Item = &Arc<JwtProvider>> {
    let filters = http.tables.values().flat_map(|table| &table.filters);
    filters.flat_map(providers_of)
}

fn providers_of(filter: &Filter) -> &[Arc<JwtProvider>] {
    match filter {
        Filter::Jwt(jwt) => jwt.providers(),
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(secret: &str) -> Jwks {
        let text = format!(r#"{{"keys": [{{"kty": "oct", "k": "{secret}"}}]}}"#);
        Jwks::parse(text.as_bytes()).unwrap()
    }

    fn verified() -> Arc<Verified> {
        Arc::new(Verified {
            terms: Terms {
                issuer: "a".to_owned(),
                audiences: Vec::new(),
                not_before: 0,
                expires: 0,
            },
            claims: Arc::new(Value::Null),
            written: Written::default(),
        })
    }

    #[test]
    fn a_bounded_number_of_bounded_tokens_is_kept() {
        let set = KeySet::new(Arc::new(keys("AAAA")), 2);
        for number in 0..4 * KEPT {
            set.keep(0, &number.to_string(), &verified());
        }
        assert_eq!((set.len(0), set.len(1)), (KEPT, 0));
        let last = (4 * KEPT - 1).to_string();
        assert!(set.verified(0, &last).is_some() && set.verified(1, &last).is_none());
        let long = "x".repeat(LONGEST_KEPT + 1);
        set.keep(1, &long, &verified());
        assert_eq!(set.len(1), 0);
    }

    #[tokio::test]
    async fn other_keys_have_verified_nothing_and_the_same_ones_what_they_had() {
        let http = "http: {clusters: [{name: c}], routes: [{name: t, virtual_hosts: [], request_authentication: \
            [{jwt_rules: [{issuer: a, jwks_uri: 'http://a/', cluster: c}]}]}]}";
        let config = underpass_config::Config::from_yaml(http).unwrap();
        let sets = KeySets::new(1);
        let [of_a] = &sets.keep(&config.http)[..] else {
            panic!("one")
        };
        assert!(!of_a.wait(Duration::from_millis(1)).await);
        of_a.replace(keys("AAAA"));
        assert!(of_a.wait(Duration::from_secs(60)).await);
        of_a.in_force().unwrap().keep(0, "t", &verified());
        of_a.replace(keys("AAAA"));
        of_a.note_asked();
        assert!(of_a.in_force().unwrap().verified(0, "t").is_some());
        of_a.replace(keys("BBBB"));
        assert!(of_a.in_force().unwrap().verified(0, "t").is_none());
        let again = sets.of(&of_a.provider);
        assert!(Arc::ptr_eq(&again, of_a));
        sets.keep(&Http::default());
        assert!(
            !Arc::ptr_eq(&sets.of(&of_a.provider), of_a),
            "it is forgotten with its provider"
        );
    }
}
