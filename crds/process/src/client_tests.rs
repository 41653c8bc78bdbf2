use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, ListParams, WatchEvent, WatchParams};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::alive::Alive;

const QUICK: Patience = Patience {
    connect: Duration::from_millis(500),
    idle: Duration::from_secs(1),
    unacknowledged: Duration::from_secs(1),
    request: Duration::from_millis(400),
    watch: Duration::from_millis(700),
};

const HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n";
const BOOKMARK: &str =
    r#"{"type":"BOOKMARK","object":{"kind":"ConfigMap","apiVersion":"v1","metadata":{"resourceVersion":"7"}}}"#;

/// A server that reads the head of each request and then does something of its own on the connection, until it is closed.
async fn server<F>(serve: impl Fn(TcpStream) -> F + Send + Copy + 'static) -> (Api<ConfigMap>, Alive)
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut seen = Vec::new();
                while !seen.ends_with(b"\r\n\r\n") {
                    seen.push(stream.read_u8().await.expect("a request"));
                }
                serve(stream).await;
            });
        }
    });
    let alive = Alive::new();
    let work = alive.work("requests", Duration::ZERO);
    let config = Config::new(url.parse().expect("an address"));
    let client = client(config, QUICK, work).expect("a client");
    (Api::namespaced(client, "default"), alive)
}

async fn write(stream: &mut TcpStream, text: &str) {
    let _ = stream.write_all(text.as_bytes()).await;
}

/// Reads until the client goes away.
async fn idle(mut stream: TcpStream) {
    let _ = stream.read_to_end(&mut Vec::new()).await;
}

async fn took(ends: impl Future<Output = String>) -> (String, Duration) {
    let begun = Instant::now();
    let text = ends.await;
    (text, begun.elapsed())
}

fn chain(error: &kube::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(next) = cause {
        text = format!("{text}: {next}");
        cause = next.source();
    }
    text
}

#[tokio::test]
async fn what_is_never_answered_fails_in_time() {
    let (api, alive) = server(idle).await;
    let asking = async { chain(&api.get("a").await.expect_err("no answer")) };
    let (text, took) = took(asking).await;
    assert!(text.contains("did not answer within"), "{text}");
    assert!(took >= QUICK.request && took < QUICK.request * 3, "{took:?}");
    assert_eq!(alive.stuck(), Vec::<String>::new(), "it has ended");
}

#[tokio::test]
async fn an_answer_that_stops_in_the_middle_fails_in_time() {
    let (api, alive) = server(async |mut stream: TcpStream| {
        write(&mut stream, &format!("{HEAD}content-length: 1000\r\n\r\n{{")).await;
        idle(stream).await;
    })
    .await;
    let asking = async { chain(&api.list(&ListParams::default()).await.expect_err("half an answer")) };
    let (text, took) = took(asking).await;
    assert!(text.contains("did not answer within"), "{text}");
    assert!(took >= QUICK.request && took < QUICK.request * 3, "{took:?}");
    assert_eq!(alive.stuck(), Vec::<String>::new());
}

#[tokio::test]
async fn a_silent_watch_is_given_up_and_one_with_bookmarks_goes_on() {
    let (api, alive) = server(async |mut stream: TcpStream| {
        write(&mut stream, &format!("{HEAD}transfer-encoding: chunked\r\n\r\n")).await;
        for _ in 0..3 {
            tokio::time::sleep(QUICK.watch / 2).await;
            write(&mut stream, &format!("{:x}\r\n{BOOKMARK}\n\r\n", BOOKMARK.len() + 1)).await;
        }
        idle(stream).await;
    })
    .await;
    let begun = Instant::now();
    let mut events = api.watch(&WatchParams::default(), "0").await.expect("answered").boxed();
    for _ in 0..3 {
        let event = events.try_next().await.expect("an event");
        assert!(matches!(event, Some(WatchEvent::Bookmark(_))), "{event:?}");
    }
    assert!(
        begun.elapsed() > QUICK.request * 2,
        "no request but a watch may take so long"
    );
    assert_eq!(alive.stuck(), Vec::<String>::new(), "a watch is no work that ends");
    let silent = Instant::now();
    let error = events.try_next().await.expect_err("silent");
    assert!(silent.elapsed() >= QUICK.watch && silent.elapsed() < QUICK.watch * 3);
    assert!(format!("{error:?}").contains("Watch("), "{error:?}");
}

#[tokio::test]
async fn a_watch_has_to_be_answered_in_time_too() {
    let (api, _) = server(idle).await;
    let begun = Instant::now();
    assert!(api.watch(&WatchParams::default(), "0").await.is_err());
    assert!(begun.elapsed() < QUICK.request * 3);
}

#[test]
fn watches_are_known_by_their_query() {
    assert!(is_watch("&watch=true&timeoutSeconds=290") && is_watch("watch=1"));
    assert!(!is_watch("") && !is_watch("labelSelector=watch%3Dtrue&limit=500"));
}
