//! Logs that tables have of their own: to whom they go, how long they are open, and what becomes of one that can't be.

use http::HeaderMap;
use tempfile::TempDir;
use underpass_config::http::{Fact, Facts, Format, RouteTable, Stage};
use underpass_config::{GrpcLog, LogFilter, LogTo, OtlpLog, RequestFormat};

use super::super::request_logs::Entry;
use super::*;

type List = Arc<Vec<RequestLog>>;

/// A request that was answered, and has nothing else to tell.
struct Answered;

impl Facts for Answered {
    fn tell(&self, fact: &Fact, _: &HeaderMap, out: &mut Vec<u8>) -> bool {
        out.extend_from_slice(if *fact == Fact::Status { b"200" } else { b"" });
        *fact == Fact::Status
    }
}

impl Entry for Answered {
    fn log_record(&self, _: &OtlpLog) -> Vec<u8> {
        Vec::new()
    }

    fn http_entry(&self, _: &GrpcLog) -> Vec<u8> {
        Vec::new()
    }
}

/// A list of logs of files, as a chain has one that was translated by itself.
fn list(paths: &[&Path]) -> List {
    let log = |path: &&Path| RequestLog {
        to: LogTo::File {
            path: path.to_path_buf(),
            format: RequestFormat::Text {
                format: Format::parse("%RESPONSE_CODE%\n", Stage::Log).unwrap(),
                omits_empty: false,
            },
        },
        filter: LogFilter::default(),
    };
    Arc::new(paths.iter().map(log).collect())
}

/// Tables with these lists.
fn http(lists: &[Option<List>]) -> Http {
    let mut http = Http::default();
    for (number, list) in lists.iter().enumerate() {
        let name: underpass_config::Text = format!("t{number}").into();
        let mut table = RouteTable::new(name.clone(), Vec::new());
        table.logs.clone_from(list);
        http.tables.insert(name, Arc::new(table));
    }
    http
}

fn off() -> AccessLogWriter {
    AccessLogWriter::off()
}

/// What is in a file once everything has been written.
fn written(log: &AccessLogWriter, path: &Path) -> String {
    log.close();
    std::fs::read_to_string(path).unwrap()
}

fn write(log: &AccessLogWriter, own: Option<&List>) {
    if let Some(logs) = log.request_logs(own) {
        logs.write(&Answered);
    }
}

/// Mutant: what was opened before is not compared with what is asked for (`Opened::prepare`), so that each chain has a file of its own.
#[test]
fn a_thousand_chains_that_log_alike_have_one_log() {
    let directory = TempDir::new().unwrap();
    let (one, other) = (directory.path().join("one"), directory.path().join("other"));
    let mut lists: Vec<_> = (0..1000).map(|_| Some(list(&[&one]))).collect();
    lists.push(Some(list(&[&other, &one])));
    lists.push(None);
    let (log, served) = (off(), http(&lists));
    log.prepare_own(&served);
    let first = log.request_logs(lists[0].as_ref()).unwrap();
    for own in &lists[..1000] {
        assert!(Arc::ptr_eq(&first, &log.request_logs(own.as_ref()).unwrap()));
    }
    assert_eq!(log.writers.paths(), [one.clone(), other]);
    // A later update with other objects that say the same opens nothing.
    let again = [Some(list(&[&one]))];
    log.prepare_own(&http(&again));
    assert!(Arc::ptr_eq(&first, &log.request_logs(again[0].as_ref()).unwrap()));
    for own in &lists {
        write(&log, own.as_ref());
    }
    assert_eq!(written(&log, &one), "200\n".repeat(1001));
}

/// Mutant: `Opened::let_go` keeps what the newest configuration asks for, and nothing else.
#[test]
fn a_log_is_open_for_as_long_as_a_snapshot_asks_for_it() {
    let directory = TempDir::new().unwrap();
    let (path, next) = (directory.path().join("log"), directory.path().join("next"));
    let (first, second) = (list(&[&path]), list(&[&next]));
    let asked = Arc::downgrade(&first);
    let before = http(&[Some(first)]);
    let after = http(&[Some(second.clone())]);
    let log = off();
    log.prepare_own(&before);
    // As when an update is put in force: a request may have the older snapshot still.
    log.prepare_own(&after);
    log.keep_own(&after);
    assert!(log.request_logs(asked.upgrade().as_ref()).is_some());
    assert_eq!(log.writers.paths(), [path, next.clone()]);
    drop(before);
    log.keep_own(&after);
    assert_eq!((asked.strong_count(), log.writers.paths()), (0, vec![next]));
    assert!(log.request_logs(Some(&second)).is_some());
}

/// Mutants: a list with a file that can't be opened is opened without it, and nobody counts; it is not opened again.
#[test]
fn a_file_that_cannot_be_opened_hinders_nothing_and_is_tried_again() {
    let directory = TempDir::new().unwrap();
    let (good, missing) = (directory.path().join("good"), directory.path().join("later/log"));
    let own = list(&[&missing, &good]);
    let (log, http) = (off(), http(&[Some(own.clone())]));
    log.prepare_own(&http);
    write(&log, Some(&own));
    assert_eq!((log.failures(), log.dropped()), (1, 1));
    log.keep_own(&http);
    assert_eq!(log.failures(), 2);
    std::fs::create_dir(missing.parent().unwrap()).unwrap();
    log.keep_own(&http);
    write(&log, Some(&own));
    assert_eq!((log.failures(), log.dropped()), (2, 1));
    assert_eq!(written(&log, &good), "200\n200\n");
    assert_eq!(std::fs::read_to_string(missing).unwrap(), "200\n");
}

/// Mutant: `AccessLogWriter::request_logs` gives the node's to everybody.
#[test]
fn who_has_no_log_of_its_own_has_the_nodes() {
    let directory = TempDir::new().unwrap();
    let (path, own_path) = (directory.path().join("node"), directory.path().join("own"));
    let mut node = NodeSettings::default();
    node.access_log.format = LogFormat::Off;
    node.access_log.requests = list(&[&path]).to_vec();
    let log = AccessLogWriter::open(&node, Arc::default()).unwrap();
    // What goes where the node's goes shares its writer.
    let (own, shared) = (list(&[&own_path]), list(&[&path]));
    log.prepare_own(&http(&[None, Some(own.clone()), Some(shared.clone())]));
    write(&log, None);
    write(&log, Some(&own));
    write(&log, Some(&shared));
    // Nobody has prepared this one.
    write(&log, Some(&list(&[&path])));
    assert_eq!(log.writers.paths(), [path.clone(), own_path.clone()]);
    assert_eq!(written(&log, &path), "200\n200\n");
    assert_eq!(std::fs::read_to_string(own_path).unwrap(), "200\n");
}

/// Mutant: a list stays open under the name that the node had before.
#[test]
fn a_node_of_another_name_has_its_logs_opened_anew() {
    let directory = TempDir::new().unwrap();
    let own = list(&[&directory.path().join("log")]);
    let (log, http) = (off(), http(&[Some(own.clone())]));
    log.prepare_own(&http);
    let before = log.request_logs(Some(&own)).unwrap();
    let mut node = NodeSettings::default();
    node.access_log.format = LogFormat::Off;
    node.name = "another".into();
    let prepared = log.prepare(&node).unwrap().unwrap();
    log.replace(prepared);
    log.keep_own(&http);
    assert!(!Arc::ptr_eq(&before, &log.request_logs(Some(&own)).unwrap()));
}
