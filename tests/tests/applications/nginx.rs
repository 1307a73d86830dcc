//! HTTP: nginx, with curl moving large files both ways and wrk making many requests.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use underpass_tests::capture::why_no_tier;
use underpass_tests::{Need, Process, wait};

use crate::place::{Place, command, number_after};

const PROGRAMS: [Need; 3] = [Need::Program("nginx"), Need::Program("curl"), Need::Program("wrk")];
const LARGE_FILE: usize = 100 * 1024 * 1024;
const WRK_CONNECTIONS: usize = 32;
const WRK_RUNS: Duration = Duration::from_secs(3);
/// The least share of the kernel where the receiver writes to a file: it is waited for again and again, as long as its disk takes.
const WRITTEN: f64 = 0.2;
/// curl asks for this answer before an upload; nginx doesn't count it.
const CONTINUE: u64 = "HTTP/1.1 100 Continue\r\n\r\n".len() as u64;

/// wrk's own text rounds; this is exact.
const WRK_REPORT: &str = r#"
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format("requests=%d bytes=%d errors=%d\n", summary.requests, summary.bytes,
    e.connect + e.read + e.write + e.status + e.timeout))
end
"#;

#[test]
fn nginx_serves_curl_and_wrk() {
    Place::relayed(8080, &PROGRAMS).iter().for_each(serve);
}

#[test]
fn nginx_serves_curl_and_wrk_between_captured_pods() {
    Place::captured(8080, &PROGRAMS).iter().for_each(serve);
}

fn serve(place: &Place) {
    let _nginx = start_nginx(place);
    let directory = place.directory().display();
    let large: Vec<u8> = (0..LARGE_FILE).map(|_| fastrand::u8(..)).collect();
    fs::write(place.path("www/large"), &large).expect("write");
    let url = format!("http://{}", place.relay());

    place.run(&format!("curl -sSf -o {directory}/downloaded {url}/large"));
    assert!(
        fs::read(place.path("downloaded")).expect("read") == large,
        "the download is the file"
    );
    place.assert_share(WRITTEN, "curl downloads 100 MB", 0, 1);
    place.run(&format!("curl -sSf -T {directory}/www/large {url}/uploaded"));
    assert!(
        fs::read(place.path("www/uploaded")).expect("read") == large,
        "the upload is the file"
    );
    place.assert_share(WRITTEN, "curl uploads 100 MB", 1, 1);
    let ((sent, received), (requests, answers)) = (place.settled(2), nginx_counts(place, 2));
    assert_eq!(sent, requests, "bytes of requests, by nginx's count");
    assert!(
        [answers, answers + CONTINUE].contains(&received),
        "{received} received, {answers} by nginx's count"
    );

    fs::write(place.path("report.lua"), WRK_REPORT).expect("write");
    let [runs, waits] = [wait::patient(WRK_RUNS), wait::soon()].map(|time| time.as_secs());
    let report = place.run(&format!(
        "wrk -t 2 -c {WRK_CONNECTIONS} -d {runs}s --timeout {waits}s -s {directory}/report.lua {url}/small"
    ));
    let count = |name: &str| number_after(&report, &format!("{name}="));
    assert!(count("requests") > 1000 && count("errors") == 0, "{report}");
    let lines = place.lines(2 + WRK_CONNECTIONS);
    place.assert_in_kernel("wrk asks for 1 KB", 2, WRK_CONNECTIONS);
    let by_relay: u64 = lines.iter().map(|line| line.number("received_bytes")).sum::<u64>() - received;
    let by_nginx = nginx_counts(place, 2 + count("requests") as usize).1 - answers;
    // wrk leaves in the middle of answers.
    let possible = count("bytes")..=by_nginx;
    assert!(
        possible.contains(&by_relay),
        "{by_relay} relayed, wrk and nginx count {possible:?}"
    );
}

/// nginx asks how much there is (FIONREAD) before it reads on. Where redirected bytes are not counted it waits for ever for those that it
/// has, and so the self-test keeps connections out of the kernel. Where it doesn't, all goes well with what was not tested either.
#[test]
fn an_upload_to_nginx_hangs_in_the_kernel_just_where_the_self_test_keeps_it_out() {
    let is_fit = why_no_tier().is_none();
    if let Some(place) = Place::captured(8080, &PROGRAMS) {
        let _nginx = start_nginx(&place);
        assert!(upload(&place, 1).is_some(), "as the self-test has it, it is done");
        place.assert_share(WRITTEN, "curl uploads", 0, 1);
    }
    let Some(place) = Place::captured_untested("plain", 8080, &PROGRAMS) else {
        return;
    };
    assert_eq!(place.proxy.offload()["state"], "on", "{}", place.proxy.offload());
    let _nginx = start_nginx(&place);
    let hung = (1..=UPLOADS).find(|number| upload(&place, *number).is_none());
    let connections = place.proxy.connections();
    println!("of {UPLOADS} uploads in the kernel {hung:?} hangs: {connections:?}");
    assert_eq!(hung.is_none(), is_fit, "{connections:?}");
    if hung.is_none() {
        place.assert_share(WRITTEN, "curl uploads untested", 0, UPLOADS);
    }
}

/// Uploads of which one at least gets to where nginx waits.
const UPLOADS: usize = 3;
const UPLOAD: usize = 20 * 1024 * 1024;
/// Far more than one takes that does not hang.
const UPLOADED_IN: Duration = Duration::from_secs(10);

/// Uploads a file; none if that is not done in time.
fn upload(place: &Place, number: usize) -> Option<()> {
    let directory = place.directory().display();
    let content: Vec<u8> = (0..UPLOAD).map(|_| fastrand::u8(..)).collect();
    fs::write(place.path("upload"), &content).expect("write");
    let line = format!(
        "curl -sSf -T {directory}/upload http://{}/uploaded-{number}",
        place.relay()
    );
    let mut curl = Process::start(place.world(), &place.client, "curl", command(&line));
    let end = Instant::now() + wait::patient(UPLOADED_IN);
    while Instant::now() < end {
        if let Some(status) = curl.exit_status() {
            assert!(status.success(), "{status}: {}", curl.output());
            let uploaded = fs::read(place.path(&format!("www/uploaded-{number}"))).expect("read");
            assert!(uploaded == content, "the upload is the file");
            return Some(());
        }
        thread::sleep(Duration::from_millis(10));
    }
    None
}

fn start_nginx(place: &Place) -> Process {
    let directory = place.directory().display();
    fs::create_dir_all(place.path("www")).expect("a folder");
    fs::write(place.path("www/small"), vec![b'x'; 1024]).expect("write");
    let modules = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
    let temporary = modules
        .map(|module| format!("{module}_temp_path {directory}/{module};\n"))
        .concat();
    let user = if nix::unistd::geteuid().is_root() {
        "user root;"
    } else {
        ""
    };
    let address = place.server.at(place.port);
    let config = format!(
        "daemon off; master_process off; {user} pid {directory}/nginx.pid; error_log {directory}/nginx-error.log;\n\
         events {{ worker_connections 512; }}\n\
         http {{ {temporary} log_format bytes '$request_length $bytes_sent'; access_log {directory}/nginx.log bytes;\n\
         client_max_body_size 0; client_body_timeout 1h; keepalive_requests 1000000;\n\
         server {{ listen {address}; root {directory}/www; dav_methods PUT; }} }}\n"
    );
    fs::write(place.path("nginx.conf"), config).expect("write");
    place.serve(command(&format!(
        "nginx -e {directory}/nginx-error.log -c {directory}/nginx.conf"
    )))
}

/// Bytes of requests and answers, once nginx has logged so many requests.
fn nginx_counts(place: &Place, requests: usize) -> (u64, u64) {
    let text = wait::some(wait::SOON, "nginx has logged every request", || {
        let text = fs::read_to_string(place.path("nginx.log")).ok()?;
        (text.lines().count() >= requests).then_some(text)
    });
    let number = |text: &str| text.parse::<u64>().expect("a number of bytes");
    let counts = text.lines().map(|line| line.split_once(' ').expect("two numbers"));
    counts.fold((0, 0), |sum, (request, answer)| {
        (sum.0 + number(request), sum.1 + number(answer))
    })
}
