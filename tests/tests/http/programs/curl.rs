//! curl, by HTTP/1.1 and by HTTP/2 without TLS.

use std::fs;
use std::process::Command;

use underpass_tests::{Need, Process};

use super::place::{Place, Server};

const REQUESTS: usize = 20;
const UPLOAD: usize = 3 << 20;

struct Curl<'p> {
    place: &'p Place,
    server: Server,
    is_http2: bool,
}

impl Curl<'_> {
    /// `curl ARGUMENTS BASE/PATH`; what it printed, both streams.
    fn run(&self, path: &str, arguments: &[&str]) -> String {
        let mut command = Process::command("curl");
        self.complete(&mut command, path, arguments);
        self.place
            .run(&format!("curl {path} of {:?}", self.server).replace('/', ""), command)
    }

    fn complete(&self, command: &mut Command, path: &str, arguments: &[&str]) {
        command.args([
            "-sS",
            if self.is_http2 {
                "--http2-prior-knowledge"
            } else {
                "--http1.1"
            },
        ]);
        command
            .args(arguments)
            .arg(format!("{}{path}", self.place.base(self.server)));
    }

    fn version(&self) -> &'static str {
        if self.is_http2 { "2" } else { "1.1" }
    }

    /// One connection, many requests. By HTTP/2 without TLS curl 7.88 (Debian 12) fails at its second request to any server (error 16), so it makes one.
    fn keeps_its_connection(&self) {
        let requests = if self.is_http2 { 1 } else { REQUESTS };
        let range = format!("/small?[1-{requests}]");
        let said = self.run(
            &range,
            &[
                "-f",
                "-o",
                "/dev/null",
                "-w",
                "%{num_connects} %{http_version} %{size_download}\\n",
            ],
        );
        let mut expected = vec![format!("0 {} 1000", self.version()); requests];
        expected[0] = format!("1 {} 1000", self.version());
        assert_eq!(said.lines().collect::<Vec<_>>(), expected, "{:?}", self.server);
    }

    fn downloads(&self) {
        let got = self.place.path("got");
        self.run("/large", &["-f", "-o", &got.display().to_string()]);
        assert!(
            fs::read(got).expect("read") == fs::read(self.place.path("www/large")).expect("read"),
            "{:?}",
            self.server
        );
    }

    /// Uploads a file, with its length or without (what it reads from a pipe).
    fn uploads(&self, has_length: bool, expects: bool) {
        let [sent, got, verbose] = ["sent", "got", "verbose"].map(|name| self.place.path(name));
        let content: Vec<u8> = (0..UPLOAD).map(|_| fastrand::u8(..)).collect();
        fs::write(&sent, &content).expect("write");
        let (sent, got_name) = (sent.display().to_string(), got.display().to_string());
        let path = format!("/kept-{has_length}-{expects}");
        let mut command = Process::command("sh");
        let script = match has_length {
            true => "exec curl \"$@\"",
            false => "cat \"$0\" | curl \"$@\"",
        };
        command.args(["-c", script, &sent]);
        let arguments = [
            if has_length { "-T" } else { "-T-" },
            if has_length { &sent } else { "-v" },
            "-v",
            "-H",
            if expects { "Expect: 100-continue" } else { "Expect:" },
            "--expect100-timeout",
            "60",
            "--stderr",
            &verbose.display().to_string(),
            "-o",
            &got_name,
            "-w",
            "%{response_code}",
        ];
        self.complete(&mut command, &path, &arguments);
        let status = self.place.run("curl uploads", command);
        let told = fs::read_to_string(&verbose).expect("read");
        let was_told = told.contains(&format!("HTTP/{} 100", self.version()));
        assert!(was_told || !expects, "{:?}: no 100 Continue: {told}", self.server);
        if status != "200" {
            // It was put into a file.
            assert!(
                ["201", "204"].contains(&&*status),
                "{:?}: {status}: {told}",
                self.server
            );
            self.run(&path, &["-f", "-o", &got_name]);
        }
        assert!(fs::read(&got).expect("read") == content, "{:?}: {told}", self.server);
    }

    /// An answer that comes while the request is still being sent.
    fn is_refused_early(&self) {
        let large = self.place.path("www/large").display().to_string();
        let said = self.run(
            "/early",
            &[
                "-T",
                &large,
                "-H",
                "Expect:",
                "-o",
                "/dev/null",
                "-w",
                "%{response_code}",
            ],
        );
        assert_eq!(said, "413", "{:?}", self.server);
    }

    /// By HTTP/1.1 they end at the proxy, as at Envoy. Where the length is known (Go by HTTP/2), curl does not wait for what follows.
    fn has_trailers(&self) {
        let said = self.run("/trailers", &["-f", "-D", "-"]).to_ascii_lowercase();
        assert!(said.contains("summed up"), "{said}");
        if !self.is_http2 || self.server == Server::Go1 {
            assert_eq!(said.contains("x-sum: 9"), self.is_http2, "{:?}: {said}", self.server);
        }
    }
}

#[test]
fn curl_is_served() {
    let Some(place) = Place::start(&[Need::Program("curl")]) else {
        return;
    };
    for server in Server::ALL {
        for is_http2 in [false, true] {
            let curl = Curl {
                place: &place,
                server,
                is_http2,
            };
            curl.keeps_its_connection();
            curl.downloads();
            for (has_length, expects) in [(true, false), (true, true), (false, false)] {
                curl.uploads(has_length, expects);
            }
            // By HTTP/2 curl 7.88 (Debian 12) takes RST_STREAM with NO_ERROR behind a whole answer (RFC 9113, section 8.1) for a failure; Go and Node do not.
            if server.deeds().contains("early") && !is_http2 {
                curl.is_refused_early();
            }
            if server.deeds().contains("trailers") {
                curl.has_trailers();
            }
        }
    }
}
