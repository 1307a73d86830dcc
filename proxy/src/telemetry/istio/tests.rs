//! Series of requests: added up, changed as a table says, and bounded.

use underpass_config::NodeSettings;
use underpass_config::http::{AddedLabel, Format, Stage};

use super::*;

fn ends(settings: &Arc<MetricSettings>) -> RequestEnds {
    RequestEnds {
        ends: PathEnds::new(None, None, None, &NodeSettings::default()),
        service: None,
        settings: settings.clone(),
        is_grpc: false,
    }
}

fn outcome(status: u16, added: &[&str]) -> Outcome {
    Outcome {
        status,
        grpc_status: None,
        flags: Flags::default(),
        added: added.iter().map(|text| Text::from(*text)).collect(),
    }
}

const ONE: Amounts = Amounts {
    duration: Duration::from_micros(1500),
    bytes: [10, 11],
    messages: [0, 0],
};

fn count_of(told: &Tellings, metric: RequestMetric, label: (&str, &str)) -> u64 {
    let has = |labels: &Labels| labels.iter().any(|(name, value)| (&**name, &**value) == label);
    let of_it = told
        .counters
        .iter()
        .filter(|((of, labels), _)| *of == metric && has(labels));
    of_it.map(|(_, count)| count).sum()
}

#[test]
fn what_cores_count_is_added_up_and_a_bound_belongs_to_its_bucket() {
    let requests = IstioRequests::new(2);
    let settings = Arc::default();
    for core in [0, 1, 1] {
        requests.of(core, &ends(&settings), &outcome(200, &[])).count(&ONE);
    }
    let told = requests.told();
    assert_eq!(told.counters.len(), 1);
    assert_eq!(count_of(&told, RequestMetric::Count, ("response_code", "200")), 3);
    let of = |wanted| {
        told.histograms
            .iter()
            .find(|((metric, _), _)| *metric == wanted)
            .unwrap()
            .1
    };
    let (duration, bytes) = (of(RequestMetric::Duration), of(RequestMetric::RequestBytes));
    assert_eq!((duration.buckets[2], duration.sum), (3, 4500));
    // `le="10"`
    assert_eq!((bytes.buckets[3], bytes.sum), (3, 30_000));
    assert_eq!(of(RequestMetric::ResponseBytes).buckets[4], 3);
}

#[test]
fn a_table_takes_labels_off_adds_them_and_silences_metrics() {
    let settings = Arc::new(MetricSettings {
        disabled: vec![RequestMetric::RequestBytes],
        removed: vec![(RequestMetric::Count, "response_code".into())],
        added: vec![AddedLabel {
            metrics: vec![RequestMetric::Count],
            name: "request_host".into(),
            value: Format::parse("%REQ(:authority)%", Stage::Request).unwrap(),
        }],
    });
    let requests = IstioRequests::new(1);
    for (status, host) in [(200, "a"), (404, "a"), (200, "b")] {
        requests.of(0, &ends(&settings), &outcome(status, &[host])).count(&ONE);
    }
    let told = requests.told();
    assert_eq!(count_of(&told, RequestMetric::Count, ("request_host", "a")), 2);
    assert_eq!(count_of(&told, RequestMetric::Count, ("response_code", "200")), 0);
    assert!(
        !told
            .histograms
            .keys()
            .any(|(metric, _)| *metric == RequestMetric::RequestBytes)
    );
    let durations = told
        .histograms
        .keys()
        .filter(|(metric, _)| *metric == RequestMetric::Duration);
    let has_host = |labels: &Labels| labels.iter().any(|(name, _)| name == "request_host");
    assert!(durations.clone().count() == 2 && durations.clone().all(|(_, labels)| !has_host(labels)));
}

#[test]
fn ever_new_labels_do_not_fill_the_memory() {
    let settings = Arc::new(MetricSettings {
        added: vec![AddedLabel {
            metrics: vec![RequestMetric::Count],
            name: "path".into(),
            value: Format::parse("%REQ(:path)%", Stage::Request).unwrap(),
        }],
        ..MetricSettings::default()
    });
    let requests = IstioRequests::new(1);
    let kept = requests.of(0, &ends(&settings), &outcome(200, &["kept"]));
    for path in 0..MOST_SERIES + 500 {
        requests
            .of(0, &ends(&settings), &outcome(200, &[&path.to_string()]))
            .count(&ONE);
    }
    assert!(requests.series.load(Ordering::Relaxed) <= MOST_SERIES + 1);
    assert!(requests.overflows.load(Ordering::Relaxed) >= 499);
    let total = |requests: &IstioRequests| count_of(&requests.told(), RequestMetric::Count, ("response_code", "200"));
    assert_eq!(total(&requests), MOST_SERIES as u64 + 500, "all are counted");
    // What nothing is counted by any more makes room, but for what is held.
    locked(&requests.cores[0]).looked = None;
    requests.of(0, &ends(&settings), &outcome(200, &["new"])).count(&ONE);
    assert!(requests.series.load(Ordering::Relaxed) < 10);
    kept.count(&ONE);
    let told = requests.told();
    assert_eq!(count_of(&told, RequestMetric::Count, ("path", "new")), 1);
    assert_eq!(count_of(&told, RequestMetric::Count, ("path", "kept")), 1);
}
