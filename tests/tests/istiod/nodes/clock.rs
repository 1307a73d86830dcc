//! Clocks that are not right: a node whose clock runs ahead of the other's and of istiod's, or behind. Debian's `faketime` lies to the programs of one
//! node (`LD_PRELOAD`); time that has passed is left as it is.
//!
//! What is issued now is valid from two minutes ago on (Istio: `ClockSkewGracePeriod`), and so on a clock that is behind by less.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use underpass_tests::capture::CaptureNode;
use underpass_tests::istiod::Istiod;
use underpass_tests::load::{ask, under_load};
use underpass_tests::{Need, Server, available, wait};

use super::{Nodes, is_answered, wait_until, web_servers};
use crate::policy::{CLIENT, WEB, policy, rule};

/// Where Debian puts it.
fn faketime() -> Option<PathBuf> {
    let folders = fs::read_dir("/usr/lib").ok()?.flatten();
    let mut libraries = folders.map(|folder| folder.path().join("faketime/libfaketime.so.1"));
    libraries.find(|library| library.is_file())
}

/// Both nodes, and the file that says how far the clock of the second is off (faketime(1): `+90s`).
struct Skewed {
    nodes: Nodes,
    file: PathBuf,
    _folder: tempfile::TempDir,
}

impl Skewed {
    fn start(offset: &str) -> Option<Self> {
        if !available(&[Need::Capture, Need::Istiod, Need::Program("faketime")]) {
            return None;
        }
        let folder = tempfile::tempdir().expect("a folder");
        // Proxies run as nobody.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        let file = folder.path().join("offset");
        fs::write(&file, offset).expect("write an offset");
        let library = faketime().expect("beside the program");
        let environment = [
            ("LD_PRELOAD", library.to_str().expect("a path in ASCII")),
            ("FAKETIME_TIMESTAMP_FILE", file.to_str().expect("a path in ASCII")),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ];
        let istiod = |node: &CaptureNode| Istiod::start_for_all(node.world(), &node.host());
        let nodes = Nodes::start_with("", istiod, [&[], &environment])?;
        Some(Self {
            nodes,
            file,
            _folder: folder,
        })
    }

    fn jump(&self, offset: &str) {
        let next = self.file.with_extension("next");
        fs::write(&next, offset).expect("write an offset");
        fs::rename(next, &self.file).expect("rename an offset");
    }
}

#[test]
fn a_clock_that_is_off_by_a_minute_and_a_half_is_noticed_by_nobody() {
    for offset in ["-90s", "+90s"] {
        let Some(skewed) = Skewed::start(offset) else { return };
        let nodes = &skewed.nodes;
        let servers = web_servers(nodes);
        let only_client = rule(&format!("{WEB},"), "ALLOW", CLIENT);
        nodes.istiod.apply("rule", policy("shop/rule", &only_client));
        wait_until(&nodes.others(), &servers, false);
        let [a, b] = nodes.clients();
        let [other_a, other_b] = nodes.others();
        let lanes = [
            (a, servers[1].address()),
            (b, servers[0].address()),
            (other_a, servers[1].address()),
            (other_b, servers[0].address()),
        ];
        let tallies = under_load(&lanes, |tallies| {
            tallies[..2].iter().for_each(|tally| tally.wait_for(50))
        });
        tallies[..2].iter().for_each(|tally| tally.assert_none_lost());
        assert_eq!((tallies[2].answered(), tallies[3].answered()), (0, 0), "{offset}");
    }
}

/// Behind by more than istiod's grace, what the others show is not valid yet; ahead by more than a day, what istiod issues has expired. Nobody can tell
/// then who anybody is, so nobody new is let in; what was open goes on, the CA is not asked more for it, and it is over when the clock is right.
#[test]
fn a_clock_that_jumps_lets_nobody_in_until_it_is_right_again() {
    let Some(skewed) = Skewed::start("+0") else { return };
    let nodes = &skewed.nodes;
    let servers = web_servers(nodes);
    let to = servers[1].address();
    let mut open = ask(&nodes.a.web, to).expect("allowed");
    // Each of them has no connection to the other node yet, so that each shakes hands.
    for (offset, client, words) in [
        ("-1h", &nodes.a.client, "peer_not_yet_valid"),
        ("+25h", &nodes.a.other, "has expired by our clock"),
    ] {
        skewed.jump(offset);
        let accepted = servers[1].accepted();
        assert!(!is_answered(client, to), "{offset}");
        assert_eq!(servers[1].accepted(), accepted, "{offset}: the server has seen nobody");
        wait::eventually(wait::SOON, "the log says why", || {
            let lines = nodes.b.proxy.access_lines();
            lines.iter().any(|line| line.field("detail").contains(words))
        });
        Server::echo(&mut open, b"still here").expect("what was open goes on");
        skewed.jump("+0");
        wait::eventually(wait::SOON, "the clock is right again", || is_answered(client, to));
    } // Three identities, each of them asked for again later and later.
    let log = nodes.b.proxy.log();
    let asked = log.matches("has expired by our clock").count();
    assert!((3..=30).contains(&asked), "asked {asked} times\n{log}");
}
