//! The server on a real port, with clients that do not behave.

use axum::routing::get;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::*;

async fn start(router: Router, limits: Limits) -> (SocketAddr, Shutdown, tokio::task::JoinHandle<()>) {
    let listener = bind(([127, 0, 0, 1], 0).into()).await.expect("a free port");
    let address = listener.local_addr().expect("its address");
    let shutdown = Shutdown::new();
    let server = tokio::spawn(serve(listener, router, limits, shutdown.clone()));
    (address, shutdown, server)
}

#[tokio::test]
async fn a_request_under_way_is_answered_before_the_end() {
    let slow = || async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        "done"
    };
    let (address, shutdown, server) = start(Router::new().route("/", get(slow)), Limits::default()).await;
    let mut client = TcpStream::connect(address).await.expect("connected");
    client
        .write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .expect("sent");
    tokio::time::sleep(Duration::from_millis(50)).await;
    shutdown.ask();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.expect("answered, then closed");
    assert!(answer.ends_with("done"), "{answer}");
    server.await.expect("ended");
    assert!(TcpStream::connect(address).await.is_err(), "nothing listens any more");
}

#[tokio::test]
async fn a_client_that_never_finishes_its_head_is_dropped() {
    let limits = Limits {
        header_read: Duration::from_millis(100),
        ..Limits::small()
    };
    let (address, _shutdown, _server) = start(Router::new(), limits).await;
    let mut client = TcpStream::connect(address).await.expect("connected");
    client.write_all(b"GET / HTTP/1.1\r\nHo").await.expect("sent");
    let mut answer = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(5), client.read_to_end(&mut answer)).await;
    assert!(ended.is_ok(), "still connected");
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let first = bind(([127, 0, 0, 1], 0).into()).await.expect("a free port");
    let address = first.local_addr().expect("its address");
    let error = bind(address).await.expect_err("taken").to_string();
    assert!(error.contains(&address.to_string()), "{error}");
}

/// What the server sends until it closes; the test fails where it does not close within 10 s.
async fn until_closed(mut client: TcpStream) -> String {
    let mut answer = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(10), client.read_to_end(&mut answer)).await;
    assert!(ended.is_ok(), "still connected");
    String::from_utf8_lossy(&answer).into_owned()
}

/// Asks on a connection of its own; `None` where it is closed without an answer.
async fn ask(mut client: TcpStream, head: &str) -> Option<String> {
    let request = format!("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{head}\r\n");
    // It may be closed before all was sent.
    let _ = client.write_all(request.as_bytes()).await;
    Some(until_closed(client).await).filter(|answer| !answer.is_empty())
}

fn hasty() -> Limits {
    Limits {
        header_read: Duration::from_millis(100),
        ..Limits::small()
    }
}

fn hello() -> Router {
    Router::new().route("/", get(|| async { "hello" }))
}

#[tokio::test]
async fn a_client_that_sends_nothing_is_dropped() {
    let (address, _shutdown, _server) = start(hello(), hasty()).await;
    let client = TcpStream::connect(address).await.expect("connected");
    assert_eq!(until_closed(client).await, "");
}

#[tokio::test]
async fn a_client_that_drips_its_head_is_dropped() {
    let (address, _shutdown, _server) = start(hello(), hasty()).await;
    let mut client = TcpStream::connect(address).await.expect("connected");
    client.write_all(b"GET / HTTP/1.1\r\n").await.expect("sent");
    let begun = tokio::time::Instant::now();
    while client.write_all(b"a: b\r\n").await.is_ok() {
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert!(begun.elapsed() < Duration::from_secs(10), "each line gains it time");
    }
}

#[tokio::test]
async fn a_connection_that_idles_after_its_answer_is_dropped() {
    let (address, _shutdown, _server) = start(hello(), hasty()).await;
    let mut client = TcpStream::connect(address).await.expect("connected");
    client
        .write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .expect("sent");
    let answer = until_closed(client).await;
    assert!(answer.ends_with("hello"), "{answer}");
}

#[tokio::test]
async fn heads_that_are_too_large_are_answered_with_431() {
    let (address, _shutdown, _server) = start(hello(), Limits::small()).await;
    let client = async || TcpStream::connect(address).await.expect("connected");
    let few = "a: b\r\n".repeat(60);
    let answer = ask(client().await, &few).await.expect("answered");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let many = "a: b\r\n".repeat(70);
    let long = format!("a: {}\r\n", "b".repeat(20 << 10));
    for head in [many, long] {
        let answer = ask(client().await, &head).await.expect("answered");
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    }
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_for_a_place() {
    let limits = Limits {
        connections: 2,
        ..Limits::small()
    };
    let (address, _shutdown, _server) = start(hello(), limits).await;
    let first = TcpStream::connect(address).await.expect("connected");
    let _second = TcpStream::connect(address).await.expect("connected");
    // Both have their places before the third comes.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let third = TcpStream::connect(address).await.expect("the kernel keeps it");
    let mut third = tokio::spawn(ask(third, ""));
    let early = tokio::time::timeout(Duration::from_millis(300), &mut third).await;
    assert!(early.is_err(), "served beside two others: {early:?}");
    drop(first);
    let answer = third.await.expect("no panic").expect("answered");
    assert!(answer.ends_with("hello"), "{answer}");
}

#[tokio::test]
async fn one_client_cannot_keep_the_others_out() {
    let limits = Limits {
        connections: 8,
        connections_of_one: 4,
        ..Limits::small()
    };
    let (address, _shutdown, _server) = start(hello(), limits).await;
    let mut greedy = Vec::new();
    for _ in 0..4 {
        greedy.push(TcpStream::connect(address).await.expect("connected"));
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    let fifth = TcpStream::connect(address).await.expect("the kernel takes it");
    assert_eq!(ask(fifth, "").await, None, "served beyond its share");
    let other = async || {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(([127, 0, 0, 2], 0).into()).expect("another address");
        socket.connect(address).await.expect("connected")
    };
    let answer = ask(other().await, "").await.expect("answered");
    assert!(answer.ends_with("hello"), "{answer}");
    drop(greedy);
    tokio::time::sleep(Duration::from_millis(100)).await;
    let again = TcpStream::connect(address).await.expect("connected");
    assert!(ask(again, "").await.is_some(), "its places are free again");
}

#[tokio::test]
async fn a_client_that_does_not_read_loses_its_place() {
    let limits = Limits {
        connections: 1,
        write: Duration::from_millis(200),
        ..Limits::small()
    };
    let large = || async { "x".repeat(64 << 20) };
    let (address, _shutdown, _server) = start(hello().route("/large", get(large)), limits).await;
    let mut deaf = TcpStream::connect(address).await.expect("connected");
    deaf.write_all(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .expect("sent");
    tokio::time::sleep(Duration::from_millis(50)).await;
    let next = TcpStream::connect(address).await.expect("the kernel keeps it");
    let answer = ask(next, "")
        .await
        .expect("answered while the other is still connected");
    assert!(answer.ends_with("hello"), "{answer}");
    drop(deaf);
}

#[tokio::test]
async fn the_address_of_all_serves_both_families() {
    let listener = bind((Ipv6Addr::UNSPECIFIED, 0).into()).await.expect("bound");
    let address = listener.local_addr().expect("an address");
    let shutdown = Shutdown::new();
    tokio::spawn(serve(listener, hello(), Limits::small(), shutdown.clone()));
    let mut loopbacks = vec![IpAddr::from(Ipv4Addr::LOCALHOST)];
    // A machine without IPv6 has the fallback.
    if address.is_ipv6() {
        loopbacks.push(Ipv6Addr::LOCALHOST.into());
    }
    for loopback in loopbacks {
        let client = TcpStream::connect((loopback, address.port())).await;
        let answer = ask(client.expect("connected"), "").await.expect("answered");
        assert!(answer.ends_with("hello"), "{loopback}: {answer}");
    }
}

#[test]
fn without_ipv6_the_address_of_all_is_that_of_ipv4() {
    let open_where = |errno: i32| {
        move |address: SocketAddr| match address {
            SocketAddr::V6(_) => Err(io::Error::from_raw_os_error(errno)),
            SocketAddr::V4(_) => Ok(address),
        }
    };
    let all = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 9897));
    // EAFNOSUPPORT: ipv6.disable=1. EADDRNOTAVAIL: no address of that family.
    for errno in [97, 99] {
        let opened = either_family(all, open_where(errno)).expect("opened");
        assert_eq!(opened, "0.0.0.0:9897".parse().expect("an address"));
    }
    either_family(all, open_where(98)).expect_err("the port is taken");
    let one = SocketAddr::from((Ipv6Addr::LOCALHOST, 9897));
    either_family(one, open_where(97)).expect_err("this one was asked for");
}
