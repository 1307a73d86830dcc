//! A database: PostgreSQL with pgbench, and a large answer to psql.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};

use underpass_tests::{Need, Process, wait};

use crate::place::{Place, command, number_after};

const NEEDS: [Need; 5] = [
    Need::Root,
    Need::Program("initdb"),
    Need::Program("postgres"),
    Need::Program("pgbench"),
    Need::Program("psql"),
];
/// PostgreSQL refuses to run as root.
const USER: [&str; 3] = ["--reuid=postgres", "--regid=postgres", "--init-groups"];

#[test]
fn postgres_serves_pgbench() {
    Place::relayed(5432, &NEEDS).iter().for_each(serve);
}

#[test]
fn postgres_serves_pgbench_between_captured_pods() {
    Place::captured(5432, &NEEDS).iter().for_each(serve);
}

fn serve(place: &Place) {
    let _postgres = start_postgres(place);
    let relay = place.relay();
    let relayed = format!("-h {} -p {} -U postgres", relay.ip(), relay.port());
    let direct = format!("-h {} -p {} -U postgres", place.server.ip(), place.port);

    place.run(&format!("pgbench {relayed} -i -s 2 -q postgres"));
    // One connection for many transactions, then one for each.
    let mut earlier = place.lines(1).len();
    for mode in ["", "-C"] {
        let report = place.run(&format!("pgbench {relayed} -c 4 -j 2 -T 2 {mode} postgres"));
        assert!(report.contains("number of failed transactions: 0"), "{report}");
        assert!(
            number_after(&report, "number of transactions actually processed: ") > 20,
            "{report}"
        );
        if mode.is_empty() {
            place.assert_in_kernel("pgbench", earlier, 1);
        }
        earlier = place.lines(earlier + 1).len();
    }

    let query = place.path("query.sql");
    fs::write(
        &query,
        "select string_agg(md5(n::text), '') from generate_series(1, 200000) n",
    )
    .expect("write");
    let ask = |way: &str| format!("psql {way} -At -f {} postgres", query.display());
    let before = place.settled(1).1;
    let answer = place.run(&ask(&relayed));
    assert!(
        answer == place.run_direct(&ask(&direct)) && answer.len() > 200_000 * 32,
        "the same answer of 6.4 MB"
    );
    wait::eventually(wait::SOON, "its bytes are counted", || {
        place.settled(1).1 - before > answer.len() as u64
    });
}

/// A cluster of its own that trusts every client.
fn start_postgres(place: &Place) -> Process {
    let user = nix::unistd::User::from_name("postgres")
        .expect("look up a user")
        .expect("the package's user");
    let data = place.path("cluster");
    fs::create_dir(&data).expect("a folder");
    fs::set_permissions(place.directory(), fs::Permissions::from_mode(0o755)).expect("chmod");
    chown(&data, Some(user.uid.as_raw()), Some(user.gid.as_raw())).expect("chown");
    let mut initdb = Process::command_as("initdb", &USER);
    initdb
        .args(["-A", "trust", "-U", "postgres", "-N", "-D", "."])
        .current_dir(&data);
    place.run_command("initdb", initdb);
    // Without this it trusts clients on loopback only.
    fs::write(data.join("pg_hba.conf"), "host all all all trust\n").expect("write");

    let mut postgres = Process::command_as("postgres", &USER);
    let (address, port) = (place.server.ip().to_string(), place.port.to_string());
    postgres
        .args(["-D", ".", "-h", &address, "-p", &port, "-k", "", "-c", "fsync=off"])
        .current_dir(&data);
    let postgres = place.serve(postgres);
    // It listens before it takes clients.
    let ready = format!("pg_isready -q -h {address} -p {port}");
    wait::eventually(wait::SOON, "postgres takes clients", || {
        let mut asking = Process::start(place.world(), &place.direct, "pg_isready", command(&ready));
        asking.wait(wait::SOON).success()
    });
    postgres
}
