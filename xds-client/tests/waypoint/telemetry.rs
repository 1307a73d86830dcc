//! What users wrote as Telemetry.

use std::path::Path;
use std::time::Duration;

use underpass_config::http::RequestMetric;
use underpass_config::{LogTo, RequestFormat};

use crate::{SERVER, SERVER_TCP, held, http, tcp};

#[test]
fn metrics_are_changed_as_telemetry_says() {
    let held = held("10-telemetry");
    let metrics = &http(&held, SERVER).table.metrics;
    assert_eq!(metrics.disabled, [RequestMetric::RequestBytes]);
    assert_eq!(metrics.removed, [(RequestMetric::Count, "response_flags".into())]);
    assert_eq!(metrics.added.len(), 1);
    assert_eq!(
        (&*metrics.added[0].name, &metrics.added[0].metrics[..]),
        ("request_host", &[RequestMetric::Count][..])
    );
    assert_eq!(tcp(&held, SERVER_TCP).reporting_interval, Some(Duration::from_secs(5)));
    let plain = crate::held("01-baseline");
    assert_eq!(*http(&plain, SERVER).table.metrics, Default::default());
}

#[test]
fn logs_in_files_are_written_and_others_are_told_of() {
    let held = held("10-telemetry");
    let logs = &http(&held, SERVER).logs;
    assert_eq!(logs.len(), 1);
    let LogTo::File {
        path,
        format: RequestFormat::Json { format, .. },
    } = &logs[0].to
    else {
        panic!("{:?}", logs[0])
    };
    assert_eq!(path, Path::new("/dev/stderr"));
    assert!(format!("{format:?}").contains("status"), "{format:?}");
    let expression = logs[0].filter.expression.as_ref().unwrap();
    assert_eq!(expression.text(), "response.code >= 400 || connection.mtls == false");
    let left: Vec<_> = held.chains[SERVER]
        .left_out
        .iter()
        .map(|why| why.field.as_str())
        .collect();
    assert_eq!(left.len(), 3, "two logs and spans: {left:?}");
}
