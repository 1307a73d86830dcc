//! An endpoint whose answers are as long whoever asks (`x-do` says which).

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use underpass_tests::Host;

/// Longer than the route's time-out.
const SLOW: Duration = Duration::from_millis(1500);

pub(super) fn start(host: &Host) -> SocketAddr {
    let listener = host.listen(9001);
    let address = listener.local_addr().expect("a socket");
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || serve(&stream));
        }
    });
    address
}

fn serve(stream: &TcpStream) -> Option<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let (mut does, mut length, mut is_chunked, mut line) = (String::new(), 0, false, String::new());
        let method = {
            reader.read_line(&mut line).ok().filter(|length| *length > 0)?;
            line.split(' ').next()?.to_owned()
        };
        loop {
            line.clear();
            reader.read_line(&mut line).ok()?;
            let Some((name, value)) = line.trim_end().split_once(':') else {
                break;
            };
            match name.to_ascii_lowercase().as_str() {
                "x-do" => does = value.trim().to_owned(),
                "content-length" => length = value.trim().parse().ok()?,
                "transfer-encoding" => is_chunked = true,
                _ => {}
            }
        }
        reader.read_exact(&mut vec![0; length]).ok()?;
        while is_chunked && line != "0\r\n" {
            line.clear();
            reader.read_line(&mut line).ok()?;
        }
        if is_chunked {
            reader.read_line(&mut line).ok()?;
        }
        answer(stream, &does, method == "HEAD")?;
    }
}

fn answer(mut stream: &TcpStream, does: &str, is_head: bool) -> Option<()> {
    let body = if is_head { "" } else { "hello" };
    let plain = |status: &str| format!("HTTP/1.1 {status}\r\nx-kind: plain\r\ncontent-length: 5\r\n\r\n{body}");
    let text = match does {
        "close" => return None,
        "short" => "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhello".to_owned(),
        "slow" => {
            thread::sleep(SLOW);
            plain("200 OK")
        }
        "pause" => {
            stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 900\r\n\r\nhello")
                .ok()?;
            let _ = stream.read(&mut [0]);
            return None;
        }
        "grpc" => "HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\ngrpc-status: 5\r\ncontent-length: 0\r\n\r\n"
            .to_owned(),
        "chunked" => {
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n2\r\n!!\r\n0\r\n\r\n".to_owned()
        }
        "204" => "HTTP/1.1 204 No Content\r\n\r\n".to_owned(),
        "websocket" => {
            stream
                .write_all(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
                .ok()?;
            let mut buffer = [0; 64];
            while let Ok(length) = stream.read(&mut buffer)
                && length > 0
            {
                stream.write_all(&buffer[..length]).ok()?;
            }
            return None;
        }
        "" => plain("200 OK"),
        status => plain(&format!("{status} Whatever")),
    };
    stream.write_all(text.as_bytes()).ok()?;
    (does != "short").then_some(())
}
