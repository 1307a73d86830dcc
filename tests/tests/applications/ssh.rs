//! Remote shells and file copies: OpenSSH, with keys and a configuration of the test's own.

use std::fs;

use underpass_tests::{Need, Process};

use crate::place::{DEADLINE, Place, command};

const NEEDS: [Need; 5] = [
    Need::Root,
    Need::Program("sshd"),
    Need::Program("ssh"),
    Need::Program("scp"),
    Need::Program("ssh-keygen"),
];

#[test]
fn sshd_serves_ssh_and_scp() {
    Place::relayed(2222, &NEEDS).iter().for_each(serve);
}

#[test]
fn sshd_serves_ssh_and_scp_between_captured_pods() {
    Place::captured(2222, &NEEDS).iter().for_each(serve);
}

fn serve(place: &Place) {
    let (_sshd, options) = start_sshd(place);
    let relay = place.relay();
    let (login, port) = (format!("root@{}", relay.ip()), relay.port());

    let said = place.run(&format!("ssh {options} -p {port} {login} echo hello"));
    assert_eq!(said.trim(), "hello");
    let fails = command(&format!("ssh {options} -p {port} {login} exit 7"));
    let mut fails = Process::start(place.world(), &place.client, "ssh", fails);
    assert_eq!(fails.wait(DEADLINE).code(), Some(7), "the remote exit status arrives");

    let content: Vec<u8> = (0..20 * 1024 * 1024).map(|_| fastrand::u8(..)).collect();
    let [here, there, back] = ["here", "there", "back"].map(|name| place.path(name).display().to_string());
    fs::write(&here, &content).expect("write");
    place.run(&format!("scp {options} -P {port} {here} {login}:{there}"));
    place.run(&format!("scp {options} -P {port} {login}:{there} {back}"));
    assert!(
        fs::read(&back).expect("read") == content,
        "what comes back is what was sent"
    );
    let (sent, received) = place.settled(4);
    let size = content.len() as u64;
    for (what, counted) in [("sent", sent), ("received", received)] {
        assert!(
            (size..size + size / 20).contains(&counted),
            "{counted} {what}: the file and ssh's framing"
        );
    }
}

/// A server for root with a key of its own; answers the options with which a client gets in.
fn start_sshd(place: &Place) -> (Process, String) {
    // sshd insists on this folder of the package's, which is gone after a restart of the machine.
    fs::create_dir_all("/run/sshd").expect("sshd's privilege separation folder");
    let directory = place.directory().display();
    for key in ["host_key", "user_key"] {
        let mut keygen = command(&format!("ssh-keygen -q -t ed25519 -f {directory}/{key}"));
        keygen.args(["-N", ""]);
        place.run_command("ssh-keygen", keygen);
    }
    let config = format!(
        "ListenAddress {}\nPort {}\nHostKey {directory}/host_key\nAuthorizedKeysFile {directory}/user_key.pub\n\
         StrictModes no\nUsePAM no\nPermitRootLogin yes\nPidFile none\nSubsystem sftp internal-sftp\n",
        place.server.ip(),
        place.port
    );
    fs::write(place.path("sshd_config"), config).expect("write");
    let sshd = place.serve(command(&format!("sshd -D -e -f {directory}/sshd_config")));
    let options =
        format!("-q -F none -i {directory}/user_key -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null");
    (sshd, options)
}
