//! The library's own examples, as they are.

use std::error::Error;

macro_rules! example {
    ($name:ident, $($argument:ident)?) => {
        #[allow(dead_code, reason = "its `main` is for those who run it by itself")]
        mod $name {
            include!(concat!("../../../client/examples/", stringify!($name), ".rs"));

            pub(super) async fn example($($argument: Vec<String>)?) -> Result<(), Box<dyn Error>> {
                $name($($argument)?).await
            }
        }
    };
}

example!(agent, arguments);
example!(server,);
example!(streaming,);

pub(crate) async fn run(name: &str, arguments: &[String]) -> Result<(), Box<dyn Error>> {
    match name {
        "agent" => agent::example(arguments.to_vec()).await,
        "server" => server::example().await,
        "streaming" => streaming::example().await,
        other => Err(format!("no example is called {other}").into()),
    }
}
