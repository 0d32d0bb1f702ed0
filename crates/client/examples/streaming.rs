// A conversation with a program, line by line, and its end.
//
//     cargo run -p cofferdam-client --example streaming

use std::error::Error;
use std::time::Duration;

use cofferdam_client::{Sandbox, Session, Status};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    streaming().await
}

async fn streaming() -> Result<(), Box<dyn Error>> {
    Session::builder("example-streaming").with(talk).await?
}

async fn talk(sandbox: &Sandbox) -> Result<(), Box<dyn Error>> {
    let script = "while read -r line; do echo \"heard $line\"; done; echo over";
    let mut run = sandbox.run("sh").args(["-c", script]).timeout(Duration::from_secs(60)).spawn().await?;
    let mut input = run.stdin.take().ok_or("no pipe")?;
    let mut lines = BufReader::new(run.stdout.take().ok_or("no pipe")?).lines();
    for word in ["one", "two"] {
        input.write_all(format!("{word}\n").as_bytes()).await?;
        println!("{}", lines.next_line().await?.unwrap_or_default());
    }
    // The end of its input is the end of its loop.
    drop(input);
    println!("{}", lines.next_line().await?.unwrap_or_default());
    let finished = run.wait().await?;
    println!("{:?} {}", finished.status, finished.status == Status::Exited(0));
    Ok(())
}
