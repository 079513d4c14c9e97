"""Would one notice: screens of suspicious rows, certified votes, and how both are judged."""
