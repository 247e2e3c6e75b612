//! The small program inside the test cluster's own images, linked statically and using nothing but the standard library.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::time::Duration;

const USAGE: &str = "usage: toolbox pause | print <words> | resolve <name> | serve <port> <text> | fetch <host:port> | fail <status>";

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["pause"] => loop {
            std::thread::sleep(Duration::from_secs(3600));
        },
        ["print", rest @ ..] => Ok(rest.join(" ")),
        ["resolve", name] => resolve(name),
        ["serve", port, text] => serve(port, text),
        ["fetch", address] => fetch(address),
        ["fail", status] => std::process::exit(status.parse().unwrap_or(1)),
        _ => Err(USAGE.into()),
    };
    match result {
        Ok(text) => println!("{text}"),
        Err(error) => {
            eprintln!("{error}");
            std::process::exit(1);
        }
    }
}

type Outcome = Result<String, Box<dyn std::error::Error>>;

fn resolve(name: &str) -> Outcome {
    let mut found: Vec<String> = (name, 0).to_socket_addrs()?.map(|address| address.ip().to_string()).collect();
    found.dedup();
    Ok(found.join(" "))
}

fn serve(port: &str, text: &str) -> Outcome {
    let listener = TcpListener::bind(("0.0.0.0", port.parse()?))?;
    for stream in listener.incoming() {
        let mut stream = stream?;
        let mut request = [0; 4096];
        let _ = stream.read(&mut request);
        let _ = write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}", text.len());
    }
    Ok(String::new())
}

fn fetch(address: &str) -> Outcome {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    // In one piece: a server that hangs up on the first word would answer a second one with a reset.
    stream.write_all(format!("GET / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.split_once("\r\n\r\n").map_or(answer.clone(), |(_, body)| body.to_owned()))
}
