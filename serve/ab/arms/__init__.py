"""The arms: where they are, whether they are well, the engines behind them."""
