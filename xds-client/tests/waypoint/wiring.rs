//! What is known of Envoy's wiring is what was recorded.

use std::path::Path;

use underpass_xds_client::waypoint::wiring::{KNOWN, Kind, is_below, lines};

use crate::{SCENARIOS, held, message};

/// `UPDATE=1` writes it anew, from the first scenario, but for what may say anything.
#[test]
fn what_is_known_was_recorded() {
    for (kind, name, known) in KNOWN {
        let (folder, file) = match kind {
            Kind::Listener => ("listener", "lds"),
            Kind::Cluster => ("cluster", "cds"),
        };
        let said = lines(&message("01-baseline", file, name));
        let free: Vec<&str> = known.lines().filter(|line| line.contains(" = * ")).collect();
        let paths: Vec<&str> = free.iter().map(|line| line.split_once(" = ").unwrap().0).collect();
        let said = said.iter().filter(|(path, _)| !is_below(path, &paths));
        let said: Vec<String> = said.map(|(path, value)| format!("{path} = {value}")).collect();
        let written: String = free
            .iter()
            .copied()
            .chain(said.iter().map(String::as_str))
            .map(|line| format!("{line}\n"))
            .collect();
        if std::env::var_os("UPDATE").is_some() {
            let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/waypoint/wiring");
            std::fs::write(root.join(folder).join(format!("{name}.txt")), &written).unwrap();
        } else {
            assert!(
                written == known,
                "{folder}/{name}: run it with UPDATE=1, and look at what has changed"
            );
        }
    }
}

#[test]
fn all_scenarios_are_wired_as_the_first() {
    for scenario in SCENARIOS {
        let unlike: Vec<String> = held(scenario).unlike.values().map(ToString::to_string).collect();
        assert!(unlike.is_empty(), "{scenario}: {unlike:#?}");
    }
}
