//! The agent of a node: how tests and the relays reach into it. One line of JSON asks, one line of JSON answers; after the answer to
//! [`Request::Connect`] the connection carries whatever the two ends say.

use std::{net::SocketAddr, time::Duration};

use nix::sys::socket::{setsockopt, sockopt};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};

use crate::{
    command::Output,
    error::{BedError, During, Result},
    network::Namespace,
};

/// The agent's port on the node's address.
pub(crate) const PORT: u16 = 7070;

/// What a node can be asked.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Run a program to its end.
    Run {
        /// The program and its arguments.
        argv: Vec<String>,
        /// Its standard input.
        stdin: Option<String>,
    },
    /// Connect to a port of the node's loopback.
    Connect(u16),
    /// Start or stop one of the node's services.
    Service {
        /// `kubelet` or `containerd`.
        name: String,
        /// Whether it shall run.
        run: bool,
    },
    /// Flush everything and switch the node off.
    PowerOff,
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// The program ended.
    Output(Output),
    /// Done; after `Connect`: connected.
    Done,
    /// Not done.
    Failed(String),
}

/// Asks the agent of a node, patiently: for as long as the program runs. The connection comes back with the answer.
pub(crate) async fn converse(
    namespace: &Namespace,
    node: &str,
    address: SocketAddr,
    request: &Request,
) -> Result<(BufReader<TcpStream>, Answer)> {
    let failed = |message: String| BedError::Agent {
        node: node.to_owned(),
        message,
    };
    let namespace = namespace.clone();
    let connect = move || namespace.connect(address, Duration::from_secs(5));
    let stream = tokio::task::spawn_blocking(connect)
        .await
        .map_err(|error| failed(error.to_string()))??;
    // A node that loses its power does not say goodbye.
    setsockopt(&stream, sockopt::KeepAlive, &true)
        .and_then(|()| setsockopt(&stream, sockopt::TcpKeepIdle, &10))
        .and_then(|()| setsockopt(&stream, sockopt::TcpKeepInterval, &5))
        .and_then(|()| setsockopt(&stream, sockopt::TcpKeepCount, &4))
        .during(|| "cannot use the connection".to_owned())?;
    stream
        .set_nonblocking(true)
        .during(|| "cannot use the connection".to_owned())?;
    let stream = TcpStream::from_std(stream).during(|| "cannot use the connection".to_owned())?;
    let mut stream = BufReader::new(stream);
    let during = || format!("node {node}: the connection to its agent broke");
    send(&mut stream, request).await.during(during)?;
    let answer = receive(&mut stream).await.during(during)?;
    let answer = answer.ok_or_else(|| failed("the connection to its agent ended without an answer".to_owned()))?;
    Ok((stream, answer))
}

/// Writes one message.
pub(crate) async fn send<W: AsyncWriteExt + Unpin>(stream: &mut W, message: &impl Serialize) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    stream.write_all(&line).await?;
    stream.flush().await
}

/// Reads one message; none when the other end has closed.
pub(crate) async fn receive<T: for<'a> Deserialize<'a>>(
    stream: &mut BufReader<TcpStream>,
) -> std::io::Result<Option<T>> {
    let mut line = Vec::new();
    if stream.read_until(b'\n', &mut line).await? == 0 {
        return Ok(None);
    }
    Ok(Some(serde_json::from_slice(&line)?))
}

/// Carries bytes both ways until both ends are done, what was already read first.
pub(crate) async fn relay(one: BufReader<TcpStream>, mut other: TcpStream) -> std::io::Result<()> {
    other.write_all(one.buffer()).await?;
    let mut one = one.into_inner();
    let _ = one.set_nodelay(true);
    let _ = other.set_nodelay(true);
    tokio::io::copy_bidirectional(&mut one, &mut other).await.map(drop)
}

/// Answers requests for ever. `control` does what concerns the node as a whole.
pub(crate) async fn serve<C, F>(listener: TcpListener, control: C)
where
    C: Fn(Request) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let control = control.clone();
                tokio::spawn(async move {
                    if let Err(error) = answer(BufReader::new(stream), control).await {
                        eprintln!("agent: {error}");
                    }
                });
            }
            Err(error) => {
                eprintln!("agent: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn answer<C, F>(mut stream: BufReader<TcpStream>, control: C) -> std::io::Result<()>
where
    C: Fn(Request) -> F,
    F: Future<Output = Answer>,
{
    match receive(&mut stream).await? {
        None => Ok(()),
        Some(Request::Connect(port)) => match TcpStream::connect(("127.0.0.1", port)).await {
            Ok(local) => {
                send(&mut stream, &Answer::Done).await?;
                relay(stream, local).await
            }
            Err(error) => send(&mut stream, &Answer::Failed(error.to_string())).await,
        },
        Some(Request::Run { argv, stdin }) => {
            // A caller that goes away takes its program with it.
            let mut closed = [0; 1];
            let program = run(argv, stdin);
            tokio::pin!(program);
            let answer = tokio::select! {
                answer = &mut program => answer,
                _ = stream.read(&mut closed) => return Ok(()),
            };
            send(&mut stream, &answer).await
        }
        Some(request) => {
            let answer = control(request).await;
            send(&mut stream, &answer).await
        }
    }
}

async fn run(argv: Vec<String>, stdin: Option<String>) -> Answer {
    let Some((program, arguments)) = argv.split_first() else {
        return Answer::Failed("an empty command".to_owned());
    };
    let child = tokio::process::Command::new(program)
        .args(arguments)
        .stdin(if stdin.is_some() {
            std::process::Stdio::piped()
        } else {
            std::process::Stdio::null()
        })
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => return Answer::Failed(format!("cannot run {program}: {error}")),
    };
    let input = child.stdin.take().zip(stdin);
    let feed = async move {
        if let Some((mut pipe, text)) = input {
            // A program need not read all that it is given.
            let _ = pipe.write_all(text.as_bytes()).await;
        }
    };
    let (output, ()) = tokio::join!(child.wait_with_output(), feed);
    match output {
        Ok(output) => Answer::Output(output.into()),
        Err(error) => Answer::Failed(format!("{program}: {error}")),
    }
}
