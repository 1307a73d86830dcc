//! What the kernel can do for capture: what `underpass doctor` finds by trying, asked once.

use std::process::Command;
use std::sync::OnceLock;

use serde_json::Value;

use crate::proxy;

/// In which way connections are to be moved to the kernel (`plain`, `verdict`), if the environment says so: the suites can be held in each.
pub(super) fn chosen_variant() -> Option<String> {
    std::env::var("UNDERPASS_VARIANT").ok()
}

/// Whether the kernel lets the pods' devices be guarded.
pub fn can_guard() -> bool {
    failure_of("program tcx").is_none()
}

/// Why the kernel moves no connections in the variant that the tests are held in, or in any; `None`: it does.
pub fn why_no_tier() -> Option<String> {
    let variants = chosen_variant().map_or_else(|| vec!["plain".to_owned(), "verdict".to_owned()], |one| vec![one]);
    let failures = variants
        .iter()
        .map(|variant| failure_of(&format!("kernel tier, variant {variant}")));
    failures.collect::<Option<Vec<String>>>().map(|all| all.join("; "))
}

/// What the doctor found wrong with this.
fn failure_of(subject: &str) -> Option<String> {
    static REPORT: OnceLock<Value> = OnceLock::new();
    let report = REPORT.get_or_init(|| {
        let mut doctor = Command::new(proxy::binary());
        let answer = doctor
            .args(["doctor", "--json"])
            .output()
            .expect("run underpass doctor");
        serde_json::from_slice(&answer.stdout).unwrap_or_else(|e| panic!("{e}: {answer:?}"))
    });
    let mut findings = report["findings"].as_array().expect("a list").iter();
    let found = findings.find(|finding| finding["subject"] == subject);
    let found = found.unwrap_or_else(|| panic!("doctor does not try {subject}: {report}"));
    (found["grade"] != "good").then(|| found["text"].as_str().expect("a text").to_owned())
}
