"""What every method of a stage must do, written once. A room's ``test_battery.py`` lists its cases and runs the checks on each."""
