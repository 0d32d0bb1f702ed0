// A server in a sandbox, reached at a port of this machine.
//
//     cargo run -p cofferdam-client --example server

use std::error::Error;
use std::time::Duration;

use cofferdam_client::Sandbox;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    server().await
}

async fn server() -> Result<(), Box<dyn Error>> {
    let sandbox = Sandbox::builder("example-server")
        .network(|n| n.port(0, 8000))
        .command(["python3", "-u", "-m", "http.server", "--bind", "0.0.0.0", "--directory", "/usr/share/doc", "8000"])
        .memory(256 << 20)
        .create()
        .await?;

    // What the server says when it listens.
    let mut log = BufReader::new(sandbox.follow_logs().await?).lines();
    while let Some(line) = log.next_line().await? {
        if line.contains("Serving HTTP") {
            break;
        }
    }

    let port = sandbox.ports().await?.first().ok_or("nothing is published")?.host();
    let mut client = TcpStream::connect(port).await?;
    client.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
    let mut answer = String::new();
    client.read_to_string(&mut answer).await?;
    println!("{}", answer.lines().next().unwrap_or_default());

    sandbox.stop(Duration::from_secs(5)).await?;
    println!("{:?}", sandbox.inspect().await?.state);
    sandbox.remove().await?;
    Ok(())
}
