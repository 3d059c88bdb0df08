//! A TCP proxy that is a bad network: it delays, lets answers overtake each other, stalls, cuts, refuses and corrupts.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
};

use super::dice::Dice;

/// How the network is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weather {
    /// As it should be.
    Fair,
    /// Each piece is late by up to so many milliseconds, each connection for itself: what was asked first is not answered
    /// first.
    Late(u64),
    /// Nothing comes through, and nobody is told.
    Stalled,
    /// Every new connection is closed at once.
    Refused,
    /// Of four pieces one has another byte in it.
    Corrupt,
}

struct Shared {
    /// Where it leads.
    far: AtomicU16,
    weather: watch::Sender<Weather>,
    cuts: watch::Sender<u64>,
    dice: Mutex<Dice>,
}

impl Shared {
    fn dice(&self) -> Dice {
        let mut dice = self.dice.lock().unwrap_or_else(PoisonError::into_inner);
        Dice::new(dice.between(0, u64::MAX))
    }
}

/// The proxy; it ends with the test's runtime.
pub struct Link {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Link {
    /// Stands before that port of this machine.
    pub async fn before(port: u16, seed: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            far: AtomicU16::new(port),
            weather: watch::Sender::new(Weather::Fair),
            cuts: watch::Sender::new(0),
            dice: Mutex::new(Dice::new(seed)),
        });
        let all = shared.clone();
        tokio::spawn(async move {
            loop {
                let Ok((near, _)) = listener.accept().await else {
                    continue;
                };
                if *all.weather.borrow() == Weather::Refused {
                    continue;
                }
                tokio::spawn(carry(near, all.clone()));
            }
        });
        Self { address, shared }
    }

    /// Its own port.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// `http://127.0.0.1:port`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on, on every connection.
    pub fn set(&self, weather: Weather) {
        self.shared.weather.send_replace(weather);
    }

    /// Leads to another port from now on; who is connected is cut off.
    pub fn lead(&self, port: u16) {
        self.shared.far.store(port, Ordering::SeqCst);
        self.cut();
    }

    /// Closes every connection that there is.
    pub fn cut(&self) {
        self.shared.cuts.send_modify(|cuts| *cuts += 1);
    }
}

async fn carry(mut near: TcpStream, shared: Arc<Shared>) {
    let mut cuts = shared.cuts.subscribe();
    let port = shared.far.load(Ordering::SeqCst);
    let Ok(mut far) = TcpStream::connect(("127.0.0.1", port)).await else {
        return;
    };
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    let (near_in, near_out) = near.split();
    let (far_in, far_out) = far.split();
    tokio::select! {
        () = pump(near_in, far_out, &shared) => {}
        () = pump(far_in, near_out, &shared) => {}
        _ = cuts.changed() => {}
    }
}

/// Until either end closes; one end gone is the connection gone.
async fn pump(mut from: impl AsyncReadExt + Unpin, mut to: impl AsyncWriteExt + Unpin, shared: &Shared) {
    let mut weather = shared.weather.subscribe();
    let mut dice = shared.dice();
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let now = *weather.borrow_and_update();
        match now {
            Weather::Late(most) => tokio::time::sleep(Duration::from_millis(dice.between(0, most))).await,
            Weather::Stalled => {
                let _ = weather.wait_for(|now| *now != Weather::Stalled).await;
            }
            Weather::Corrupt if dice.below(4) == 0 => {
                let bit = 1 << dice.below(8);
                buffer[dice.below(read)] ^= bit;
            }
            Weather::Fair | Weather::Refused | Weather::Corrupt => {}
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
